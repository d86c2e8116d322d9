"""Axis vocabulary and tensor aliases, once for the whole package.

Axes, by name:

    batch     sequences of one forward pass
    seq       positions of a sequence, padded to the longest of the batch
    token     unpadded positions of a batch, flattened in order of (sequence, position)
    label     positions that carry a label, flattened in the same order
    d_in      inputs of a linear map; one more than its width where it has a bias
    d_out     outputs of a linear map
    query     query examples
    train     training examples
    vocab     rows of the output embedding
"""

from jaxtyping import Bool, Float, Int
from torch import Tensor

Matrix = Float[Tensor, "rows cols"]
SquareMatrix = Float[Tensor, "dim dim"]
Vector = Float[Tensor, " dim"]
TokenIds = Int[Tensor, "batch seq"]
TokenMask = Bool[Tensor, "batch seq"]

__all__ = [
    "Bool",
    "Float",
    "Int",
    "Matrix",
    "SquareMatrix",
    "Tensor",
    "TokenIds",
    "TokenMask",
    "Vector",
]
