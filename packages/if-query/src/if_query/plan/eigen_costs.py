"""What eigendecompositions take, from one that is timed for each width that is not too large."""

import time
from collections import deque
from collections.abc import Mapping

import torch
from math_utils.curvature import CurvatureConfig
from math_utils.linalg import symmetric_eigendecomposition
from math_utils.linear_maps import LinearMap

LARGEST_TIMED = 1024
"""Wider matrices are reckoned from this width by n³."""

_COPIES = 4
"""Matrices in the dtype of the decomposition that one holds: itself, its vectors, two of LAPACK."""

_REMEMBERED = 4
"""Covariances of inputs that :func:`math_utils.curvature.decompose` keeps to find equal ones."""


class EigenCosts:
    """Seconds and memory of the eigendecompositions of a fit."""

    def __init__(
        self,
        maps: Mapping[str, LinearMap],
        curvature: CurvatureConfig,
        devices: Mapping[str, torch.device],
    ) -> None:
        """Nothing is timed before it is asked for."""
        self._maps = maps
        self._dtype = curvature.eigen_dtype
        self._devices = devices
        self._timed: dict[tuple[int, torch.device], float] = {}
        self._workers = torch.get_num_threads()

    @property
    def note(self) -> str:
        """What is assumed."""
        return (
            f"eigendecompositions are timed up to {LARGEST_TIMED} wide, and grow as n³ beyond; "
            f"{self._workers} at a time on a CPU"
        )

    def seconds_of(self, one: LinearMap) -> float:
        """Of both decompositions of a map, one after the other."""
        device = next(one.modules[0].parameters()).device
        return self._seconds(one.d_in, device) + self._seconds(one.d_out, device)

    def seconds(self, first_reader: Mapping[str, str]) -> float:
        """Of all maps; a covariance of inputs that several maps share is decomposed once.

        Args:
            first_reader: {map: the first map that reads the same input}.
        """
        total = 0.0
        for name, one in self._maps.items():
            device = self._devices[name]
            own = self._seconds(one.d_out, device)
            if first_reader.get(name, name) == name:
                own += self._seconds(one.d_in, device)
            total += own / (self._workers if device.type == "cpu" else 1)
        return total

    def _seconds(self, width: int, device: torch.device) -> float:
        timed = min(width, LARGEST_TIMED)
        if (timed, device) not in self._timed:
            generator = torch.Generator().manual_seed(timed)
            rows = torch.randn(timed, timed, generator=generator).to(device)
            matrix = rows @ rows.T / timed
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            try:
                start = time.perf_counter()
                symmetric_eigendecomposition(matrix, dtype=self._dtype)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                self._timed[timed, device] = time.perf_counter() - start
            finally:
                torch.set_num_threads(threads)
        return self._timed[timed, device] * (width / timed) ** 3

    def peak_bytes(self, first_reader: Mapping[str, str], itemsize: int) -> int:
        """The most that covariances, bases and decompositions under way hold at once.

        Args:
            first_reader: {map: the first map that reads the same input}.
            itemsize: bytes of an entry of the covariances.
        """
        held: deque[int] = deque(maxlen=self._workers + 2)
        remembered: deque[int] = deque(maxlen=_REMEMBERED)
        peak = 0
        for name, one in self._maps.items():
            is_first = first_reader.get(name, name) == name
            covariances = itemsize * (one.d_in**2 + one.d_out**2)
            # A covariance and its basis of as many bytes; a basis that is known is not computed.
            held.append(2 * itemsize * one.d_out**2 + (0 if is_first else itemsize * one.d_in**2))
            if is_first:
                remembered.append(2 * itemsize * one.d_in**2)
            under_way = min(self._workers, 2 * len(held))
            width = max(one.d_out, one.d_in if is_first else 0)
            decomposing = under_way * _COPIES * self._dtype.itemsize * width**2
            reading = 2 * covariances
            peak = max(peak, sum(held) + sum(remembered) + max(decomposing, reading))
        return peak
