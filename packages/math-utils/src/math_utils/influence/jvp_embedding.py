"""Embeddings by forward-mode differentiation through a model's first blocks.

How the hidden state of an example moves when the first K blocks' parameters move in a random
direction says cheaply what its gradient would: Nikdan et al. 2025 (arXiv 2505.19051).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from math_utils._typing import Float, Tensor
from math_utils.capture import frozen
from math_utils.causal_lm import call_model, find_blocks, find_embedding, token_batch
from math_utils.errors import InfluenceError
from math_utils.influence.base import Batch, EmbeddingExtractor
from math_utils.influence.config import JVPEmbeddingConfig
from math_utils.influence.hadamard import RandomizedHadamardTransform
from math_utils.language_modeling import TokenBatch, keyed_generator


class JVPEmbeddingExtractor(EmbeddingExtractor):
    """The embedding of x is (J(x) u₁, …, J(x) u_T), projected where that is asked for.

    J(x) is the Jacobian of the hidden state after block K at the last real token with respect to
    the parameters of the input embedding and the first K blocks; the u are N(0, 1) in all of
    them, the same for every example. It is computed by forward-mode differentiation: no backward
    pass, and nothing after block K is run. Memory beside the model: T directions as large as the
    parameters of embedding and K blocks.

    Args:
        model: a causal language model; never changed.
        config: blocks, tangents, projection, seed.

    Raises:
        InfluenceError: if the model has no embedding, no stack of blocks, or too few of them; or
            if the projection has more dimensions than what is projected.
    """

    def __init__(self, model: nn.Module, config: JVPEmbeddingConfig | None = None) -> None:
        self.model = model
        self.config = config or JVPEmbeddingConfig()
        name, blocks = find_blocks(model)
        if self.config.num_blocks > len(blocks):
            raise InfluenceError(
                f"expected num_blocks of at most {len(blocks)}, the length of {name} in "
                f"{type(model).__name__}, got {self.config.num_blocks}"
            )
        self._last_block = blocks[self.config.num_blocks - 1]
        _, self._embedding = find_embedding(model)
        moved = {id(p) for p in self._embedding.parameters()}
        for block in blocks[: self.config.num_blocks]:
            moved |= {id(p) for p in block.parameters()}
        self.parameter_names = tuple(
            name
            for name, parameter in model.named_parameters()
            if id(parameter) in moved and parameter.is_floating_point()
        )
        self._directions: list[dict[str, Tensor]] = []
        self._width = self._find_width()
        whole = self._width * self.config.num_tangents
        self.projection: RandomizedHadamardTransform | None = None
        if self.config.projection_dim is not None:
            self.projection = RandomizedHadamardTransform(
                whole, self.config.projection_dim, seed=self.config.seed
            )

    @property
    def embedding_dim(self) -> int:
        """Tangents × width of the hidden state, or the dimensions of the projection."""
        if self.projection is not None:
            return self.projection.output_dim
        return self._width * self.config.num_tangents

    def compute_batch_embeddings(self, batch: Batch) -> Float[Tensor, "batch dim"]:
        """The embeddings of one batch; its labels do not matter.

        Raises:
            InfluenceError: on a malformed batch.
        """
        tokens = token_batch(batch).to(self._embedding.weight.device)
        values = self._parameters()
        parts = []
        with frozen(self.model), forward_mode_attention(self.model), torch.no_grad():
            for direction in self.directions():
                _, moved = torch.func.jvp(  # type: ignore[misc]  # a pair without has_aux
                    lambda parameters: self.hidden_states(tokens, parameters),
                    (values,),
                    (direction,),
                )
                parts.append(moved)
        whole = torch.cat(parts, dim=1)
        return whole if self.projection is None else self.projection.project(whole)

    def directions(self) -> list[dict[str, Tensor]]:
        """The tangents u by parameter name; the same for the same seed and model."""
        if not self._directions:
            for tangent in range(self.config.num_tangents):
                generator = keyed_generator(self.config.seed, tangent)
                self._directions.append(
                    {
                        name: torch.randn(value.shape, generator=generator).to(value)
                        for name, value in self._parameters().items()
                    }
                )
        return self._directions

    def hidden_states(
        self, tokens: TokenBatch, parameters: dict[str, Tensor]
    ) -> Float[Tensor, "batch width"]:
        """The hidden state after block K at the last real token, for any parameters.

        Args:
            tokens: right-padded.
            parameters: values by name; the model's own for those that are missing.
        """
        reached: list[Tensor] = []

        def stop(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            reached.append(output if isinstance(output, Tensor) else output[0])
            raise _Reached

        handle = self._last_block.register_forward_hook(stop)
        try:
            torch.func.functional_call(
                _Caller(self.model), {f"model.{n}": p for n, p in parameters.items()}, (tokens,)
            )
        except _Reached:
            pass
        finally:
            handle.remove()
        if not reached:
            raise InfluenceError(
                f"{type(self.model).__name__}: expected its forward pass to run block "
                f"{self.config.num_blocks} of the stack, but it did not"
            )
        last = tokens.attention_mask.sum(dim=1) - 1
        return reached[0][torch.arange(len(last), device=last.device), last]

    def _parameters(self) -> dict[str, Tensor]:
        own = dict(self.model.named_parameters())
        return {name: own[name].detach() for name in self.parameter_names}

    def _find_width(self) -> int:
        tokens = token_batch({"input_ids": torch.zeros(1, 1, dtype=torch.long)})
        with frozen(self.model), torch.no_grad():
            return self.hidden_states(tokens.to(self._embedding.weight.device), {}).shape[1]


@contextmanager
def forward_mode_attention(model: nn.Module) -> Iterator[None]:
    """Attention that forward-mode differentiation can go through; the model's own afterwards.

    Fused kernels have no forward-mode derivative. ``scaled_dot_product_attention`` is held to its
    implementation by matrix products, and a model with ``set_attn_implementation`` is set to
    "eager".
    """
    setter = getattr(model, "set_attn_implementation", None)
    previous = getattr(getattr(model, "config", None), "_attn_implementation", None)
    switches = callable(setter) and previous not in (None, "eager")
    try:
        if switches and callable(setter):
            setter("eager")
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        if switches and callable(setter):
            setter(previous)


class _Reached(Exception):  # noqa: N818 - not an error: the wanted block has run
    """Ends a forward pass after the wanted block."""


class _Caller(nn.Module):
    """Lets ``functional_call`` replace parameters in a call that is not the model's own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: TokenBatch) -> Any:
        """Call the model on a batch."""
        return call_model(self.model, tokens)
