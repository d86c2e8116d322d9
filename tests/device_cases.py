"""The devices that laws are tested on, and influence in plain autograd to compare with."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_cuda])]


def reference_scores(
    model: Any, train: Sequence[Sequence[int]], queries: Sequence[Sequence[int]]
) -> Tensor:
    """EK-FAC scores [query, train] of all MLP maps, with the labels of the data, damped by 0.1.

    One example at a time by autograd, covariances position by position, in the model's dtype.
    """
    maps = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".mlp." in name
    }
    seen = [_one_example(model, maps, ids) for ids in train]
    asked = [_one_example(model, maps, ids) for ids in queries]
    total = torch.zeros(len(queries), len(train), dtype=torch.float64)
    for name in maps:
        bases = []
        for part in ("input", "output gradient"):
            rows = torch.cat([one[name, part] for one in seen])
            bases.append(torch.linalg.eigh(rows.T @ rows / len(rows)).eigenvectors)
        rotated, rotated_queries = (
            torch.stack([bases[1].T @ one[name, "gradient"] @ bases[0] for one in examples])
            for examples in (seen, asked)
        )
        eigenvalues = rotated.square().mean(dim=0)
        damped = eigenvalues + 0.1 * eigenvalues.mean()
        total += torch.einsum("qoi,toi->qt", rotated_queries / damped, rotated)
    return total


def _one_example(
    model: Any, maps: dict[str, nn.Module], ids: Sequence[int]
) -> dict[tuple[str, str], Tensor]:
    """Input and output gradient at every position, and the gradient of the weight, of each map."""
    outputs: dict[str, Tensor] = {}
    found: dict[tuple[str, str], Tensor] = {}
    handles = []
    for name, module in maps.items():

        def watch(module: nn.Module, args: Any, output: Tensor, name: str = name) -> None:
            found[name, "input"] = args[0][0].detach()
            output.retain_grad()
            outputs[name] = output

        handles.append(module.register_forward_hook(watch))
    model.zero_grad(set_to_none=True)
    tokens = torch.tensor([list(ids)])
    logits = model(input_ids=tokens, use_cache=False).logits[0, :-1]
    nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="sum").backward()
    for handle in handles:
        handle.remove()
    for name, module in maps.items():
        gradient, weight = outputs[name].grad, module.get_parameter("weight")
        assert gradient is not None
        assert weight.grad is not None
        found[name, "output gradient"] = gradient[0]
        found[name, "gradient"] = weight.grad.clone()
    model.zero_grad(set_to_none=True)
    return found
