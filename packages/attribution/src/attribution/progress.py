"""Progress in texts, whatever the batches."""

from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

from tqdm import tqdm

Batch = TypeVar("Batch")


class CountedBatches(Generic[Batch]):
    """Batches under a bar that counts what is in them; every pass over them has its own.

    Args:
        batches: of any kind.
        sizes: how many texts are in each.
        description: what the bar says.
        unit: what a text is, in the plural.
    """

    def __init__(
        self,
        batches: Sequence[Batch],
        sizes: Sequence[int],
        *,
        description: str,
        unit: str = "documents",
    ) -> None:
        self._batches, self._sizes = batches, sizes
        self._description, self._unit = description, unit

    def __iter__(self) -> Iterator[Batch]:
        with tqdm(total=sum(self._sizes), desc=self._description, unit=f" {self._unit}") as bar:
            for batch, size in zip(self._batches, self._sizes, strict=True):
                yield batch
                bar.update(size)
