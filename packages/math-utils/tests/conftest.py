"""Small float64 networks with every trait that capture must get right, and naive references."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import jaxtyping
import pytest
import torch
from math_utils.language_modeling import TokenBatch, summed_cross_entropy
from math_utils.linear_maps import LinearMap, find_linear_maps
from torch import Tensor, nn

VOCAB = 11


class TokenNet(nn.Module):
    """Embedding, a map without bias, one with bias that runs twice, causal mixing, a head."""

    def __init__(self, *, width: int = 4, hidden: int = 6, repeats: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, width)
        self.up = nn.Linear(width, hidden, bias=False)
        self.gate = nn.Linear(width, hidden, bias=False)
        self.inner = nn.Linear(hidden, hidden)
        self.down = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(width, VOCAB, bias=False)
        self.repeats = repeats

    def forward(self, batch: TokenBatch) -> Tensor:
        hidden = self.embedding(batch.input_ids)
        mask = batch.attention_mask[..., None]
        mixed = (hidden * mask).cumsum(dim=1) / (mask.cumsum(dim=1).clamp_min(1))
        states = torch.tanh(self.up(mixed)) * torch.sigmoid(self.gate(mixed))
        for _ in range(self.repeats):
            states = states + torch.tanh(self.inner(states))
        return self.head(hidden + self.dropout(self.down(states)))


def token_loss(model: nn.Module, batch: TokenBatch) -> Tensor:
    predicts = batch.label_positions()
    logits = model(batch)[predicts]
    targets = batch.labels[:, 1:][predicts[:, :-1]]
    return summed_cross_entropy(logits, targets, predicts.nonzero()[:, 0], len(predicts))


@dataclass
class Problem:
    model: TokenNet
    maps: dict[str, LinearMap]
    sequences: list[list[int]]

    def batch(
        self, rows: Sequence[int], *, padding_side: str = "right", pad_id: int = 0
    ) -> TokenBatch:
        chosen = [self.sequences[row] for row in rows]
        return TokenBatch.collate(
            chosen, chosen, list(rows), padding_side=padding_side, pad_id=pad_id
        )

    def batches(self, *groups: Sequence[int]) -> list[TokenBatch]:
        return [self.batch(group) for group in groups]

    def all_rows(self) -> list[int]:
        return list(range(len(self.sequences)))

    def naive_gradients(self) -> dict[str, Tensor]:
        """Autograd, one example at a time: [example, d_out, d_in], the bias as last column."""
        gradients: dict[str, list[Tensor]] = {name: [] for name in self.maps}
        self.model.eval()
        for row in self.all_rows():
            self.model.zero_grad()
            token_loss(self.model, self.batch([row])).sum().backward()
            for name, one in self.maps.items():
                module = one.modules[0]
                whole = module.weight.grad.clone()
                if one.has_bias:
                    whole = torch.cat([whole, module.bias.grad[:, None]], dim=1)
                gradients[name].append(whole)
        self.model.zero_grad(set_to_none=True)
        return {name: torch.stack(each) for name, each in gradients.items()}

    def naive_fisher(self) -> dict[str, Tensor]:
        """(1/N) Σ vec(G) vec(G)ᵀ, row-major vec: [d_out · d_in, d_out · d_in]."""
        return {
            name: torch.einsum("ni,nj->ij", g.flatten(1), g.flatten(1)) / len(g)
            for name, g in self.naive_gradients().items()
        }


@pytest.fixture(scope="session")
def make_problem() -> Callable[..., Problem]:
    def make(
        *, select: Callable[[str], bool] = lambda name: name != "head", seed: int = 0, **kwargs: int
    ) -> Problem:
        generator = torch.Generator().manual_seed(seed)
        model = TokenNet(**kwargs).double()
        for parameter in model.parameters():
            parameter.data = torch.randn(
                parameter.shape, generator=generator, dtype=torch.float64
            ) / (parameter.shape[-1] ** 0.5)
        lengths = [5, 3, 7, 2, 4, 3, 6, 5]
        sequences = [
            torch.randint(0, VOCAB, (length,), generator=generator).tolist() for length in lengths
        ]
        return Problem(model, find_linear_maps(model, select), sequences)

    return make


@pytest.fixture
def problem(make_problem: Callable[..., Problem]) -> Problem:
    return make_problem()


@pytest.fixture(scope="session")
def loss() -> Callable[[nn.Module, TokenBatch], Tensor]:
    return token_loss


@pytest.fixture
def no_shape_hook() -> Iterator[None]:
    """Errors as users see them: the tests' hook on shapes would come first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
