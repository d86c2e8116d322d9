"""How many floating point operations each stage of EK-FAC needs, from shapes and token counts.

One multiplication and one addition count as two operations. What is counted is the least that the
algorithm needs, in matrix products and eigendecompositions: only real tokens (no padding), only the
labelled positions at the output head, only pairs of positions that causal attention lets see each
other, covariances as symmetric rank-k updates (half of the full product), and what several maps
read from one tensor once. Elementwise work (norms, activations, squares, the softmax) is left out;
it is bound by memory, and part of what is lacking to an efficiency of 1.

The tracked maps are the MLP's three of every layer, gate and up [width → mlp], which read one
tensor, and down [mlp → width].
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class GatedDecoder:
    """Shapes of a decoder with gated MLPs and as many key heads as query heads."""

    num_layers: int
    width: int
    mlp_width: int
    vocabulary: int

    @property
    def attention_weights(self) -> int:
        """Entries of the query, key, value and output projections of one layer."""
        return 4 * self.width**2

    @property
    def map_weights(self) -> int:
        """Entries of one tracked map; a layer has three."""
        return self.width * self.mlp_width

    @property
    def distinct_widths(self) -> tuple[int, ...]:
        """Widths of the distinct covariances of one layer: two of inputs, three of gradients."""
        return (self.width, self.mlp_width, self.mlp_width, self.mlp_width, self.width)


@dataclass(frozen=True)
class Workload:
    """Counts of the data that a stage goes over."""

    num_examples: int
    num_tokens: int
    num_labels: int
    num_attended: int
    """Pairs (position, position that it attends to), over all examples."""

    @classmethod
    def of(cls, lengths: Sequence[int], *, causal: bool = True) -> "Workload":
        """Examples of these lengths in which every token but the first is a label.

        Args:
            lengths: real tokens per example.
            causal: whether attention leaves out what it masks; False counts all n² pairs, as
                attention implementations without that saving compute.
        """
        return cls(
            num_examples=len(lengths),
            num_tokens=sum(lengths),
            num_labels=sum(n - 1 for n in lengths),
            num_attended=sum(n * (n + 1) // 2 if causal else n * n for n in lengths),
        )


def forward(model: GatedDecoder, data: Workload) -> int:
    """The forward pass: every weight once per token, and attention's two products."""
    per_token = model.num_layers * (model.attention_weights + 3 * model.map_weights)
    attention = 4 * model.num_layers * model.width * data.num_attended
    head = 2 * data.num_labels * model.width * model.vocabulary
    return 2 * data.num_tokens * per_token + attention + head


def backward_to_maps(model: GatedDecoder, data: Workload) -> int:
    """The backward pass without weight gradients, down to the outputs of the lowest tracked maps.

    Of the lowest layer it needs the input gradient of the down projection alone. Attention has four
    products (of values, probabilities, queries and keys); fused kernels do a fifth, to recompute
    the probabilities.
    """
    above = model.num_layers - 1
    per_token = above * (model.attention_weights + 3 * model.map_weights) + model.map_weights
    attention = 8 * above * model.width * data.num_attended
    head = 2 * data.num_labels * model.width * model.vocabulary
    return 2 * data.num_tokens * per_token + attention + head


def replay(model: GatedDecoder, data: Workload) -> int:
    """What a second pass does again of the model, from the MLPs' inputs and output gradients.

    The forward products of gate and up, and the backward one of down.
    """
    return 6 * model.num_layers * data.num_tokens * model.map_weights


def plain_pass(model: GatedDecoder, data: Workload) -> int:
    """Forward and backward with all weight gradients: three times the forward pass."""
    return 3 * forward(model, data)


def covariance_products(model: GatedDecoder, data: Workload) -> int:
    """Σ a aᵀ and Σ δ δᵀ on and above the diagonal: d (d + 1) / 2 entries per token."""
    per_token = sum(width * (width + 1) for width in model.distinct_widths)
    return model.num_layers * data.num_tokens * per_token


def eigendecompositions(model: GatedDecoder) -> int:
    """14/3 d³ for each distinct covariance.

    4/3 for the reduction to tridiagonal form, 4/3 for divide and conquer without deflation, 2 for
    the transformation of the vectors back. In float64, where a processor does half as many
    operations per second as in float32.
    """
    return model.num_layers * sum(14 * width**3 for width in model.distinct_widths) // 3


def rotations(model: GatedDecoder, data: Workload) -> int:
    """Q_Aᵀ a and Q_Sᵀ δ at every token, inputs that maps share once."""
    per_token = sum(2 * width**2 for width in model.distinct_widths)
    return model.num_layers * data.num_tokens * per_token


def example_products(model: GatedDecoder, data: Workload) -> int:
    """Σ_t δ_t a_tᵀ of every example: one product per map and token."""
    return 6 * model.num_layers * data.num_tokens * model.map_weights


def preconditioning(model: GatedDecoder, train: Workload, num_queries: int) -> int:
    """Q_S R Q_Aᵀ of every query and map.

    A side on which training examples have fewer rows than the queries stays in the eigenbasis,
    and the training examples are rotated instead, inputs that maps share once.
    """
    total = 0
    # Width of the side, that of the other one, and how many maps have it in common.
    narrow, wide = model.width, model.mlp_width
    sides = ((narrow, wide, 2), (wide, narrow, 1), (wide, narrow, 1), (wide, narrow, 1))
    for width, other, num_maps in (*sides, (narrow, wide, 1)):
        rows_of_map = num_queries * other
        keeps = train.num_tokens < rows_of_map
        total += 2 * width**2 * (train.num_tokens if keeps else num_maps * rows_of_map)
    return model.num_layers * total


def score_products(model: GatedDecoder, num_examples: int, num_queries: int) -> int:
    """⟨U_q, G_t⟩ of every query, example and map."""
    return 6 * model.num_layers * model.map_weights * num_examples * num_queries


def stage_arithmetic(
    model: GatedDecoder, train: Workload, queries: Workload, *, replays: bool
) -> dict[str, dict[str, int]]:
    """{stage: {part: floating point operations}} of EK-FAC influence.

    Args:
        model: shapes.
        train: training examples, which are also what curvature is fitted on.
        queries: queries.
        replays: whether corrected eigenvalues do only :func:`replay` of the model.
    """
    passes = {"forward": forward(model, train), "backward": backward_to_maps(model, train)}
    asked = queries.num_examples
    return {
        "covariances": {**passes, "covariance products": covariance_products(model, train)},
        "eigendecompositions": {"eigendecompositions": eigendecompositions(model)},
        "corrected eigenvalues": {
            **({"MLPs again": replay(model, train)} if replays else passes),
            "rotations": rotations(model, train),
            "products per example": example_products(model, train),
        },
        "scores": {
            "query gradients": forward(model, queries)
            + backward_to_maps(model, queries)
            + rotations(model, queries)
            + example_products(model, queries),
            "preconditioning": preconditioning(model, train, asked),
            **passes,
            "products per example": example_products(model, train),
            "scores of pairs": score_products(model, train.num_examples, asked),
        },
    }
