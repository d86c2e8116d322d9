"""Finding the weights of a model that an influence target names."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from torch import nn

from math_utils.causal_lm import find_embedding, find_head
from math_utils.errors import InfluenceError
from math_utils.influence.config import NAMED_TARGETS
from math_utils.linear_maps import MLP_PATTERN, LinearMap, find_linear_maps

T = TypeVar("T")

_PATTERNS = {
    "mlp": MLP_PATTERN,
    "lora": r"(^|\.)lora_[AB]\.",
    "all": r"",
}


@dataclass(frozen=True, eq=False)
class TargetLayers:
    """The weights of a model that a target selects.

    Attributes:
        embedding: name and module, where its gradient is wanted.
        head: name and module, where its gradient is wanted.
        is_tied: whether the two are one weight, which then is one layer.
        maps: the other linear maps.
    """

    embedding: tuple[str, nn.Embedding] | None
    head: tuple[str, nn.Module] | None
    is_tied: bool
    maps: dict[str, LinearMap]


def find_target_layers(model: nn.Module, target: str) -> TargetLayers:
    """The layers of a target.

    Raises:
        InfluenceError: if the model has no such layers; the message names what was looked for.
    """
    named = target in NAMED_TARGETS
    pattern = re.compile(_PATTERNS.get(target, r"(?!)" if named else target))
    wants_embedding, wants_head = (
        target in (own, "both", "all") for own in ("embedding", "output")
    )
    embedding = find_embedding(model) if wants_embedding else if_there(find_embedding, model)
    head = find_head(model) if wants_head else if_there(find_head, model)
    if not named:
        wants_embedding = embedding is not None and bool(pattern.search(embedding[0]))
        wants_head = head is not None and bool(pattern.search(head[0]))
    is_tied = embedding is not None and head is not None and head[1].weight is embedding[1].weight
    if is_tied:
        wants_embedding = wants_head = wants_embedding or wants_head
    head_modules = [] if head is None else [head[0]]
    maps = find_linear_maps(
        model, lambda name: bool(pattern.search(name)) and name not in head_modules
    )
    found = TargetLayers(
        embedding if wants_embedding else None,
        head if wants_head else None,
        is_tied and wants_head,
        maps,
    )
    if target == "lora":
        _check_adapters(model)
    if not (wants_embedding or wants_head or maps):
        some = [name for name, _ in find_linear_maps(model, lambda name: True).items()][:3]
        raise InfluenceError(
            f"the target {target!r} selects nothing of {type(model).__name__}; looked for linear "
            f"maps whose name matches {pattern.pattern!r}"
            + (f"; it has, for example, {', '.join(some)}" if some else "; it has none")
        )
    return found


def layer_shapes(found: TargetLayers) -> dict[str, tuple[int, int]]:
    """(rows, cols) of the gradient of every layer, by name, in the order of gradients."""
    shapes: dict[str, tuple[int, int]] = {}
    if found.embedding is not None:
        name, embedding = found.embedding
        shapes[name] = (embedding.num_embeddings, embedding.embedding_dim)
    if found.head is not None:
        name, head = found.head
        rows, cols = head.get_parameter("weight").shape
        if not isinstance(head, nn.Linear):
            rows, cols = cols, rows
        has_bias = getattr(head, "bias", None) is not None
        key = found.embedding[0] if found.is_tied and found.embedding is not None else name
        shapes[key] = (rows, cols + has_bias)
    for name, linear_map in found.maps.items():
        shapes[name] = (linear_map.d_out, linear_map.d_in)
    return shapes


def if_there(find: Callable[[nn.Module], T], model: nn.Module) -> T | None:
    """What a finder finds, or None: here its absence is no error, as it was not asked for."""
    try:
        return find(model)
    except InfluenceError:
        return None


def _check_adapters(model: nn.Module) -> None:
    unseen = [name for name, _ in model.named_parameters() if "lora_embedding" in name]
    if unseen:
        raise InfluenceError(
            f"the target 'lora' covers adapters of linear maps; {unseen[0]} is an adapter of an "
            "embedding, which cannot be tracked; name the wanted maps by a regular expression"
        )
