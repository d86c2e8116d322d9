"""Factors that do not fit into memory: each map is read from disk when it is asked for."""

from collections.abc import Iterator, Mapping

import torch
from math_utils.curvature import MapFactors

from if_query.factors import FactorStore


class FactorsOnDisk(Mapping[str, MapFactors]):
    """The factors of every map in float32, one at a time in memory.

    Files are not compared with their checksums here: :meth:`FactorStore.check_maps` does that once.
    A pass over queries reads every map once per batch, and so does self-influence.
    """

    def __init__(self, store: FactorStore, devices: Mapping[str, torch.device]) -> None:
        """Factors of ``store``, each read onto its device."""
        self._store = store
        self._devices = devices

    def __getitem__(self, name: str) -> MapFactors:
        own = self._store.read_map_factors(name, check=False)
        return own.to(self._devices[name], torch.float32)

    def __iter__(self) -> Iterator[str]:
        return iter(self._devices)

    def __len__(self) -> int:
        return len(self._devices)
