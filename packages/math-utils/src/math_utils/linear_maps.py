"""The linear maps of a model: weight matrices, and the modules that apply them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import nn

from math_utils._typing import Tensor
from math_utils.errors import CurvatureError

MLP_PATTERN = r"(^|\.)mlp\..*(proj|dense|fc)"
"""Finds the names of the linear maps of feed-forward blocks in Hugging Face models."""


@dataclass(frozen=True, eq=False)
class LinearMap:
    """A weight matrix and the modules that apply it.

    Attributes:
        name: dotted name of the first module that applies it.
        modules: every module that applies it: more than one where a weight is shared.
        d_in: width of its inputs, one more where it has a bias.
        d_out: width of its outputs.
        has_bias: whether the last column of the matrix is a bias.
    """

    name: str
    modules: tuple[nn.Module, ...]
    d_in: int
    d_out: int
    has_bias: bool

    @property
    def num_parameters(self) -> int:
        """Entries of the matrix, bias included."""
        return self.d_in * self.d_out


def is_linear_map(module: nn.Module) -> bool:
    """Whether a module is ``nn.Linear`` or shaped like GPT-2's Conv1D (weight transposed)."""
    return isinstance(module, nn.Linear) or _is_conv1d_shaped(module)


def find_linear_maps(model: nn.Module, select: Callable[[str], bool]) -> dict[str, LinearMap]:
    """Find the linear maps of a model whose module name is selected.

    Args:
        model: the model to look through; not changed.
        select: says for the dotted name of a module whether it is wanted.

    Returns:
        The maps by name, in the model's order. Modules that share a weight make one map.

    Raises:
        CurvatureError: where modules share a weight but not the bias: they have no common matrix.
    """
    by_weight: dict[int, list[tuple[str, nn.Module]]] = {}
    for name, module in model.named_modules():
        if is_linear_map(module) and select(name):
            by_weight.setdefault(id(module.weight), []).append((name, module))
    maps = {}
    for uses in by_weight.values():
        (name, first), *rest = uses
        for other_name, other in rest:
            if other.bias is not first.bias:
                raise CurvatureError(
                    f"{name} and {other_name} share a weight but not a bias, so they are not one "
                    "linear map; track only one of them"
                )
        d_out, d_in = _shape(first)
        has_bias = first.bias is not None
        maps[name] = LinearMap(
            name=name,
            modules=tuple(module for _, module in uses),
            d_in=d_in + has_bias,
            d_out=d_out,
            has_bias=has_bias,
        )
    return maps


def _is_conv1d_shaped(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 2 and hasattr(module, "nf")


def _shape(module: nn.Module) -> tuple[int, int]:
    """(d_out, d_in) without the bias."""
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    weight = module.get_parameter("weight")
    return weight.shape[1], weight.shape[0]


def share_of_parameters(maps: Iterable[LinearMap], model: nn.Module) -> float:
    """The share of a model's parameters that the maps hold, shared weights counted once."""
    total = sum(parameter.numel() for parameter in model.parameters())
    return sum(linear_map.num_parameters for linear_map in maps) / total
