"""Batches of tokens, and the losses that curvature and influence are taken of.

Everything here is pure tensors: how a model turns a :class:`TokenBatch` into logits is the
caller's business. Loss always means summed cross-entropy in nats over the labelled positions of
one example, next-token shifted: position t predicts the label at t + 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from math_utils._typing import Float, Int, Tensor, TokenIds, TokenMask

IGNORED_LABEL = -100


@dataclass(frozen=True)
class TokenBatch:
    """Sequences padded to the longest among them.

    Attributes:
        input_ids: token ids [batch, seq]; what stands at padded positions has no effect.
        attention_mask: True at real positions [batch, seq].
        labels: the token expected at each position [batch, seq], -100 where none counts.
        example_keys: one integer per example [batch] that identifies it wherever it is batched;
            seeds its sampled labels and names it in error messages.
    """

    input_ids: TokenIds
    attention_mask: TokenMask
    labels: TokenIds
    example_keys: Int[Tensor, " batch"]

    @classmethod
    def collate(
        cls,
        input_ids: Sequence[Sequence[int]],
        labels: Sequence[Sequence[int]],
        example_keys: Sequence[int],
        *,
        pad_id: int = 0,
        padding_side: str = "right",
    ) -> "TokenBatch":
        """Pad ragged sequences to the longest of them.

        Args:
            input_ids: one list of token ids per example, none empty.
            labels: per example as many labels as ids.
            example_keys: one key per example.
            pad_id: the id written at padded positions.
            padding_side: "right" or "left".

        Returns:
            The batch, on the CPU.

        Raises:
            ValueError: on no or empty sequences, or labels of another length than the ids.
        """
        if not input_ids:
            raise ValueError("expected at least one sequence to collate, got none")
        if padding_side not in ("right", "left"):
            raise ValueError(f'expected padding_side "right" or "left", got {padding_side!r}')
        longest = max(len(ids) for ids in input_ids)
        shape = (len(input_ids), longest)
        ids_out = torch.full(shape, pad_id, dtype=torch.long)
        labels_out = torch.full(shape, IGNORED_LABEL, dtype=torch.long)
        mask = torch.zeros(shape, dtype=torch.bool)
        for row, (ids, expected) in enumerate(zip(input_ids, labels, strict=True)):
            if len(ids) != len(expected) or not ids:
                raise ValueError(
                    f"sequence {row}: expected as many labels as ids and at least one, "
                    f"got {len(ids)} ids and {len(expected)} labels"
                )
            place = (
                slice(0, len(ids)) if padding_side == "right" else slice(longest - len(ids), None)
            )
            ids_out[row, place] = torch.tensor(ids, dtype=torch.long)
            labels_out[row, place] = torch.tensor(expected, dtype=torch.long)
            mask[row, place] = True
        return cls(ids_out, mask, labels_out, torch.tensor(list(example_keys), dtype=torch.long))

    def to(self, device: torch.device | str) -> "TokenBatch":
        """The same batch on another device."""
        return TokenBatch(
            self.input_ids.to(device),
            self.attention_mask.to(device),
            self.labels.to(device),
            self.example_keys.to(device),
        )

    @property
    def num_tokens(self) -> int:
        """Number of unpadded positions."""
        return int(self.attention_mask.sum())

    def position_ids(self) -> TokenIds:
        """Positions counted from each sequence's first real token."""
        return (self.attention_mask.long().cumsum(dim=1) - 1).clamp_min(0)

    def label_positions(self) -> TokenMask:
        """True at position t where the label at t + 1 counts and both positions are real."""
        predicts = torch.zeros_like(self.attention_mask)
        counts = (self.labels[:, 1:] != IGNORED_LABEL) & self.attention_mask[:, 1:]
        predicts[:, :-1] = counts & self.attention_mask[:, :-1]
        return predicts


def summed_cross_entropy(
    label_logits: Float[Tensor, "label vocab"],
    targets: Int[Tensor, " label"],
    example_of_label: Int[Tensor, " label"],
    num_examples: int,
) -> Float[Tensor, " batch"]:
    """Cross-entropy per example: L_n = -Σ_{t of n} log softmax(z_t)[y_t], in nats, no mean.

    Args:
        label_logits: logits at the positions that carry a label; upcast to float32 at least.
        targets: the label of each of those positions.
        example_of_label: the row of the batch each position belongs to.
        num_examples: number of rows; rows without a label get loss 0.

    Returns:
        The summed loss of every example.
    """
    logits = label_logits.to(torch.promote_types(label_logits.dtype, torch.float32))
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    total = torch.zeros(num_examples, dtype=losses.dtype, device=losses.device)
    return total.index_add(0, example_of_label, losses)


def sample_labels(
    label_logits: Float[Tensor, "label vocab"],
    example_of_label: Int[Tensor, " label"],
    example_keys: Int[Tensor, " batch"],
    *,
    seed: int,
) -> Int[Tensor, " label"]:
    """Draw y_t ~ softmax(z_t) at every labelled position, for the true Fisher.

    Each example draws from a generator of its own, seeded by ``seed`` and its key, so that what
    is drawn does not depend on the batch it is in, on order, or on the number of processes. (The
    logits themselves may: in reduced precision two batch shapes can round a logit differently,
    and a draw that falls on the border between two tokens then differs.)

    A draw inverts the cumulative distribution at one uniform number per position.

    Args:
        label_logits: logits at the labelled positions, those of one example in one run.
        example_of_label: the row of the batch each position belongs to, ascending.
        example_keys: the key of every row.
        seed: the seed of the whole fit.

    Returns:
        One token id per labelled position.
    """
    probabilities = torch.softmax(
        label_logits.detach().to(torch.promote_types(label_logits.dtype, torch.float32)), dim=-1
    )
    uniform = draw_uniform(example_of_label, example_keys, seed=seed)
    return invert_cumulative(probabilities, uniform.to(probabilities.device))


def draw_uniform(
    example_of_label: Int[Tensor, " label"], example_keys: Int[Tensor, " batch"], *, seed: int
) -> Float[Tensor, " label"]:
    """One number in [0, 1) per labelled position, from the generator of its example.

    Args:
        example_of_label: the row of the batch each position belongs to, ascending.
        example_keys: the key of every row.
        seed: the seed of the whole fit.

    Returns:
        The numbers, in float64 on the CPU.
    """
    counts = torch.bincount(example_of_label, minlength=len(example_keys)).tolist()
    draws = [
        torch.rand(count, generator=keyed_generator(seed, key), dtype=torch.float64)
        for count, key in zip(counts, example_keys.tolist(), strict=True)
    ]
    return torch.cat(draws)


def keyed_generator(seed: int, key: int) -> torch.Generator:
    """A CPU generator for one key (an example, a tangent) of a seed.

    splitmix64 keeps neighbouring keys apart; torch's generator reads only 32 bits of its seed, so
    that ``seed << 32`` would be the same for every seed.
    """
    mask = (1 << 64) - 1
    state = (seed * 0x9E3779B97F4A7C15 + key + 0x9E3779B97F4A7C15) & mask
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
    return torch.Generator().manual_seed((state ^ (state >> 31)) & (mask >> 1))


def invert_cumulative(
    probabilities: Float[Tensor, "label vocab"], uniform: Float[Tensor, " label"], block: int = 256
) -> Int[Tensor, " label"]:
    """The token at which the cumulative distribution of each position exceeds its number.

    First over blocks of the vocabulary and then within the block, which reads the probabilities
    once.

    Args:
        probabilities: of every token at every position.
        uniform: a number in [0, 1) per position, in float64.
        block: tokens of a block.

    Returns:
        One token id per position, never one of probability 0.
    """
    num_labels, vocab = probabilities.shape
    num_blocks = -(-vocab // block)
    padded = torch.nn.functional.pad(probabilities, (0, num_blocks * block - vocab))
    blocks = padded.view(num_labels, num_blocks, block)
    block_mass = blocks.sum(dim=-1, dtype=torch.float64).cumsum(dim=-1)
    target = uniform * block_mass[:, -1]
    chosen = torch.searchsorted(block_mass, target[:, None], right=True).squeeze(1)
    chosen = chosen.clamp_max(block_mass.shape[1] - 1)
    rows = torch.arange(num_labels, device=probabilities.device)
    before = torch.where(chosen > 0, block_mass[rows, (chosen - 1).clamp_min(0)], 0.0)
    within = blocks[rows, chosen].to(torch.float64).cumsum(dim=-1)
    offset = torch.searchsorted(within, (target - before)[:, None], right=True).squeeze(1)
    # A draw beyond the last mass of the block, by rounding, belongs to its last possible token.
    possible = blocks[rows, chosen] > 0
    places = torch.arange(block, device=probabilities.device)
    last = torch.where(possible, places, -1).amax(dim=-1)
    return chosen * block + torch.minimum(offset, last)


__all__ = [
    "IGNORED_LABEL",
    "TokenBatch",
    "draw_uniform",
    "invert_cumulative",
    "keyed_generator",
    "sample_labels",
    "summed_cross_entropy",
]
