"""Deep linear probes: trained questions to the model, whose answers tell functions apart.

Kahana, Horwitz, Shuval and Hoshen 2024 (arXiv 2410.10811) classify models by their outputs on
probes that a deep linear generator makes. Here the model is one, frozen, and what is classified is
a text, which the probes are read behind (:mod:`attribution.probe_generator`).

**What is predicted.** A classifier over function names would have no output for a function that no
training label named. So queries and documents go through one head φ, and a query's distribution
over *documents* is what is trained:

    p(z | q) = softmax_z( cos(φ(r(q)), φ(r(z))) / τ ),   r(x) = the model's states at the probes,

with loss −mean over relevant z of log p(z | q), over the training functions' queries and documents
alone. (A prototype network: the documents of a function are its class.) A function that was held
out has documents too, and so has scores.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from attribution.checkpoints import Checkpoints, check_examples
from attribution.errors import AttributionError
from attribution.examples import Example
from attribution.modes import evaluation_mode
from attribution.probe_generator import (
    DeepLinearGenerator,
    check_room,
    probe_responses,
    text_batches,
)


@dataclass(frozen=True)
class ProbeOptions:
    """Size and training of the probes. Few functions are known, so everything is small.

    Attributes:
        num_probes: probes M behind every text.
        latent_size: entries of a latent.
        num_generator_layers: linear maps between latent and probe.
        embedding_size: entries of φ(r), the head being one linear map.
        subtract_old: whether r is the new checkpoint's response minus the old one's.
        num_steps: of AdamW; 0 leaves the probes as they were drawn.
        num_queries: queries in a step.
        num_documents: documents in a step, one relevant to each query among them.
        learning_rate: of AdamW.
        decay: per unit of learning rate, how fast all weights go back to their initial values.
        temperature: τ.
        batch_size: texts per pass when scores are taken; of no effect on them beyond rounding.
        seed: of initial values and of what is drawn in each step.
    """

    num_probes: int = 8
    latent_size: int = 32
    num_generator_layers: int = 3
    embedding_size: int = 64
    subtract_old: bool = False
    num_steps: int = 40
    num_queries: int = 16
    num_documents: int = 48
    learning_rate: float = 1e-3
    decay: float = 1.0
    temperature: float = 0.1
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        at_least_one = ("num_probes", "latent_size", "num_generator_layers", "embedding_size",
                        "num_queries", "num_documents", "batch_size")  # fmt: skip
        for name in at_least_one:
            if getattr(self, name) < 1:
                raise AttributionError(f"expected {name} of at least 1, got {getattr(self, name)}")
        if self.num_steps < 0 or self.learning_rate <= 0 or self.temperature <= 0 or self.decay < 0:
            raise AttributionError(
                "expected num_steps and decay not below 0, learning_rate and temperature above, "
                f"got {self.num_steps}, {self.decay}, {self.learning_rate}, {self.temperature}"
            )


DEFAULT_PROBES = ProbeOptions()


def dlp_probes(
    checkpoints: Checkpoints,
    documents: Sequence[Example],
    queries: Sequence[Example],
    relevance: Bool[Tensor, "query document"],
    *,
    query_functions: Sequence[Hashable],
    document_functions: Sequence[Hashable | None],
    held_out: Sequence[Hashable],
    options: ProbeOptions = DEFAULT_PROBES,
) -> Float[Tensor, "query document"]:
    """cos(φ(r(q)), φ(r(z))), the probes and φ trained on all functions but those held out.

    Args:
        checkpoints: both frozen; the old one is used with ``subtract_old`` only.
        documents: what may have taught the answers.
        queries: what is asked.
        relevance: the truth. Read for training queries and training documents only.
        query_functions: what each query asks about: the whole chain of functions, a wrapper and
            its base, under one name, or one function would be on both sides.
        document_functions: what each document is about, likewise; None for nothing.
        held_out: functions whose queries and documents take no part in training.
        options: sizes and training.

    Returns:
        The scores in [-1, 1] of all queries; they are a fair test for the held-out ones only.
        Higher: the model answers the probes alike. The sign says nothing of help or harm.

    Raises:
        AttributionError: on unfit examples, no query or relevant document left to train on, or
            texts too long for the probes.
    """
    for some, what in ((queries, "query"), (documents, "document")):
        check_examples(some, checkpoints.new, what)
        check_room(some, options.num_probes, checkpoints.new)
    left_out = set(held_out)
    training = _Training(
        [place for place, name in enumerate(query_functions) if name not in left_out],
        [place for place, name in enumerate(document_functions) if name not in left_out],
        relevance,
    )
    probes = _Probes(checkpoints, options)
    with evaluation_mode(checkpoints.new), evaluation_mode(checkpoints.old):
        probes.train(training, documents, queries)
        asked = probes.embed_all(queries, "queries")
        given = probes.embed_all(documents, "documents")
    return asked @ given.T


def deal_folds(functions: Sequence[Hashable], num_folds: int, seed: int) -> list[int]:
    """A fold for each entry, equal ones in one fold, so that every function is held out once.

    Scores of two queries then come of different probes; only those of one query can be compared.

    Args:
        functions: what each query asks about, as the ``query_functions`` of :func:`dlp_probes`.
        num_folds: at least 2, at most the number of different functions.
        seed: of the deal.

    Raises:
        AttributionError: on another number of folds.
    """
    different = list(dict.fromkeys(functions))
    if not 2 <= num_folds <= len(different):
        raise AttributionError(
            f"expected between 2 and {len(different)} folds, the number of functions asked about, "
            f"got {num_folds}"
        )
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(different), generator=generator).tolist()
    fold_of = {different[index]: place % num_folds for place, index in enumerate(order)}
    return [fold_of[name] for name in functions]


class _Training:
    """The queries and documents that training may see, and which belong together."""

    def __init__(
        self,
        queries: Sequence[int],
        documents: Sequence[int],
        relevance: Bool[Tensor, "query document"],
    ) -> None:
        known = relevance[list(queries)][:, list(documents)]
        self._queries = [query for query, any_ in zip(queries, known.any(1), strict=True) if any_]
        self._documents = list(documents)
        self._relevance = known[known.any(dim=1)]
        if not self._queries:
            raise AttributionError(
                "expected a training query with a relevant training document; hold out fewer "
                "functions"
            )

    def draw(
        self, num_queries: int, num_documents: int, generator: torch.Generator
    ) -> tuple[list[int], list[int], Bool[Tensor, "query document"]]:
        """Some queries, documents (one relevant to each query, the others any), and relevance."""
        rows = torch.randperm(len(self._queries), generator=generator)[:num_queries]
        weights = self._relevance[rows].double()
        columns = torch.multinomial(weights, 1, generator=generator)[:, 0].unique()
        others = torch.randperm(len(self._documents), generator=generator)
        others = others[~torch.isin(others, columns)][: max(0, num_documents - len(columns))]
        columns = torch.cat([columns, others])
        return (
            [self._queries[row] for row in rows],
            [self._documents[column] for column in columns],
            self._relevance[rows][:, columns],
        )


class _Probes:
    """Generator and head, in the precision of the model."""

    def __init__(self, checkpoints: Checkpoints, options: ProbeOptions) -> None:
        self._checkpoints, self._options = checkpoints, options
        self._random = torch.Generator().manual_seed(options.seed)
        model, device = checkpoints.new, checkpoints.device
        embedding: Any = model.get_input_embeddings()
        weight: Tensor = embedding.weight.detach()
        hidden = weight.shape[1]
        self._generator = DeepLinearGenerator(
            num_probes=options.num_probes,
            latent_size=options.latent_size,
            num_layers=options.num_generator_layers,
            hidden_size=hidden,
            scale=float(weight.square().mean().sqrt()),
            generator=self._random,
        )
        width = options.num_probes * hidden
        self._head = torch.randn(width, options.embedding_size, generator=self._random)
        self._head *= width**-0.5
        self._bias = torch.zeros(options.embedding_size)
        self._generator.latents, self._head, self._bias = (
            one.to(device, model.dtype) for one in (self._generator.latents, self._head, self._bias)
        )
        self._generator.maps = [one.to(device, model.dtype) for one in self._generator.maps]

    def _parameters(self) -> list[Tensor]:
        return [*self._generator.parameters(), self._head, self._bias]

    def train(
        self, training: _Training, documents: Sequence[Example], queries: Sequence[Example]
    ) -> None:
        """AdamW on the training functions, with decay towards the initial values."""
        options, parameters = self._options, self._parameters()
        start = [one.clone() for one in parameters]
        for one in parameters:
            one.requires_grad_(True)
        optimizer = torch.optim.AdamW(parameters, lr=options.learning_rate, weight_decay=0.0)
        pull = options.learning_rate * options.decay
        with tqdm(range(options.num_steps), desc="probes", unit="step", leave=False) as bar:
            for _ in bar:
                rows, columns, relevant = training.draw(
                    options.num_queries, options.num_documents, self._random
                )
                with torch.enable_grad():
                    asked = self._embed([queries[row] for row in rows])
                    given = self._embed([documents[column] for column in columns])
                    loss = retrieval_loss(asked @ given.T / options.temperature, relevant)
                    # Only these: the checkpoints' own .grad fields stay as they are.
                    slopes = torch.autograd.grad(loss, parameters)
                for one, slope in zip(parameters, slopes, strict=True):
                    one.grad = slope
                optimizer.step()
                with torch.no_grad():
                    for one, first in zip(parameters, start, strict=True):
                        one.lerp_(first, pull)
                bar.set_postfix(loss=f"{float(loss.detach()):.3f}")

    @torch.no_grad()
    def embed_all(self, examples: Sequence[Example], unit: str) -> Float[Tensor, "example dim"]:
        """Unit vectors φ(r), on the CPU, with progress in what ``unit`` calls them."""
        with tqdm(total=len(examples), desc="responses", unit=f" {unit}") as bar:
            return self._embed(examples, bar).cpu()

    def _embed(
        self, examples: Sequence[Example], bar: "tqdm[Any] | None" = None
    ) -> Float[Tensor, "example dim"]:
        probes = self._generator()
        order: list[int] = []
        found = []
        batches = text_batches(examples, self._options.batch_size, self._checkpoints.device)
        for rows, batch in batches:
            states = probe_responses(self._checkpoints.new, batch, probes)
            if self._options.subtract_old:
                states = states - probe_responses(self._checkpoints.old, batch, probes)
            order += rows
            found.append(normalize(states.flatten(1) @ self._head + self._bias, dim=1))
            if bar is not None:
                bar.update(len(rows))
        places = torch.tensor(order, device=found[0].device).argsort()
        return torch.cat(found)[places]


def retrieval_loss(
    logits: Float[Tensor, "query document"], relevant: Bool[Tensor, "query document"]
) -> Float[Tensor, ""]:
    """−mean over queries of the mean over their relevant documents of log softmax."""
    relevant = relevant.to(logits.device)
    logs = logits.log_softmax(dim=1)
    each = torch.where(relevant, logs, 0.0).sum(dim=1) / relevant.sum(dim=1)
    return -each.mean()
