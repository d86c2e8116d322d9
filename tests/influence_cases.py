"""Batches, configurations and naive gradients that the tests of influence share."""

import torch
from math_utils.influence import InfluenceConfig
from torch import nn

ARCHITECTURES = ["olmo2", "llama", "gpt_neox", "gpt2", "qwen3"]
TIED = {"llama", "gpt2"}
DOUBLE = torch.float64
CLOSE = {"rtol": 1e-8, "atol": 1e-10}


def config(target="both", **kwargs):
    return InfluenceConfig(target=target, dtype=DOUBLE, **kwargs)


def make_batch(sequences, rows, *, side="right", prompt=0, pad=2, labels=True):
    """A mapping with one padded position more than needed, on either side."""
    chosen = [sequences[row] for row in rows]
    longest = max(map(len, chosen)) + 1
    out = {name: [] for name in ("input_ids", "attention_mask", "labels")}
    for ids in chosen:
        gap = longest - len(ids)
        for name, real, filler in (
            ("input_ids", ids, pad),
            ("attention_mask", [1] * len(ids), 0),
            ("labels", [-100] * min(prompt, len(ids) - 1) + ids[min(prompt, len(ids) - 1) :], pad),
        ):
            padding = [filler] * gap
            out[name].append(real + padding if side == "right" else padding + real)
    if not labels:
        del out["labels"]
    return {name: torch.tensor(rows) for name, rows in out.items()}


def make_loader(sequences, groups, **kwargs):
    return [make_batch(sequences, rows, **kwargs) for rows in groups]


def loss_of(model, ids, prompt):
    first = min(prompt, len(ids) - 1)
    logits = model(input_ids=torch.tensor([ids])).logits[0]
    log_probabilities = logits.log_softmax(-1)
    return -sum(log_probabilities[t, ids[t + 1]] for t in range(len(ids) - 1) if t + 1 >= first)


def naive_gradients(model, extractor, sequences, prompt=0):
    """{layer: [example, rows, cols]} by autograd, one example at a time."""
    modules = dict(model.named_modules())
    required = {p: p.requires_grad for p in model.parameters()}
    gradients = {name: [] for name in extractor.layers}
    for p in required:
        p.requires_grad_(True)
    for ids in sequences:
        model.zero_grad()
        loss_of(model, ids, prompt).backward()
        for name in extractor.layers:
            module = modules[name]
            weight = torch.zeros_like(module.weight) if module.weight.grad is None else None
            weight = module.weight.grad.clone() if weight is None else weight
            if not isinstance(module, nn.Linear | nn.Embedding):
                weight = weight.T
            if getattr(module, "bias", None) is not None:
                weight = torch.cat([weight, module.bias.grad[:, None]], dim=1)
            gradients[name].append(weight)
    model.zero_grad(set_to_none=True)
    for p, flag in required.items():
        p.requires_grad_(flag)
    return {name: torch.stack(each) for name, each in gradients.items()}


def flat(gradients):
    return torch.cat([each.flatten(1) for each in gradients.values()], dim=1)


def use_float64_norms(model) -> None:
    """Hugging Face computes RMSNorm in float32 in any model, which would drown a small step."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__.endswith("RMSNorm"):
                norm = nn.RMSNorm(child.weight.shape, eps=child.variance_epsilon)
                norm.weight = child.weight
                setattr(parent, name, norm)
