"""Errors that data or a model cause, as opposed to wrong calls."""


class CurvatureError(ValueError):
    """Curvature or influence cannot be computed from these data with this model."""


class NonFiniteError(CurvatureError):
    """A loss or a gradient of one example is NaN or infinite.

    Attributes:
        what: what is not finite, for example "the output gradient of layers.3.mlp.up_proj".
        example_key: the key of the example, as its batch has it.
    """

    def __init__(self, what: str, example_key: int) -> None:
        self.what = what
        self.example_key = example_key
        super().__init__(self.describe(f"example {example_key}"))

    def describe(self, example: str) -> str:
        """The message, with a name for the example that the user knows."""
        return f"{self.what} is not finite for {example}; run the model in a wider dtype"


class InfluenceError(CurvatureError):
    """math_utils.influence cannot do what was asked with this model, these data or these calls."""


class ContrastiveError(ValueError):
    """A loss, schedule or miner of math_utils.contrastive cannot do what was asked."""
