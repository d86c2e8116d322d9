"""What eigendecompositions take, from one that is timed for each width that is not too large."""

import time
from collections import deque
from collections.abc import Mapping

import torch
from math_utils.curvature import CurvatureConfig
from math_utils.curvature.decomposition import COPIES, matrices_per_stack, waiting_bytes
from math_utils.curvature.eigenbasis import REMEMBERED
from math_utils.linalg import stacked_eigendecompositions, symmetric_eigendecomposition
from math_utils.linear_maps import LinearMap
from torch import Tensor

from if_query.device_memory import is_host, wait_for_devices

LARGEST_TIMED = 1024
"""Wider matrices are reckoned from this width by n³."""


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
        self._timed: dict[tuple[int, torch.device, int], float] = {}
        self._workers = torch.get_num_threads()

    @property
    def note(self) -> str:
        """What is assumed."""
        how = f"{self._workers} at a time on a CPU"
        if not self._on_host:
            how = "those of one width in stacks"
        return (
            f"eigendecompositions are timed up to {LARGEST_TIMED} wide, and grow as n³ beyond; "
            f"{how}"
        )

    @property
    def _on_host(self) -> bool:
        return is_host(list(self._devices.values()))

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
        """Of one matrix, among as many as are decomposed with it."""
        timed, together = min(width, LARGEST_TIMED), 1
        if device.type != "cpu":
            together = self._together(width, device)
        if (timed, device, together) not in self._timed:
            matrices = [_covariance(timed, seed).to(device) for seed in range(together)]
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            try:
                if device.type != "cpu":  # the first call starts a library
                    symmetric_eigendecomposition(matrices[0][:8, :8], dtype=self._dtype)
                wait_for_devices()
                start = time.perf_counter()
                names = [""] * together
                stacked_eigendecompositions(matrices, names, dtype=self._dtype)
                wait_for_devices()
                seconds = time.perf_counter() - start
            finally:
                torch.set_num_threads(threads)
            self._timed[timed, device, together] = seconds / together
        return self._timed[timed, device, together] * (width / timed) ** 3

    def _together(self, width: int, device: torch.device) -> int:
        """Matrices of a width that go in one stack, if there are so many."""
        widths = [
            own
            for name, one in self._maps.items()
            if self._devices[name] == device
            for own in (one.d_in, one.d_out)
        ]
        return max(1, min(widths.count(width), matrices_per_stack(width, self._dtype)))

    def peak_bytes(self, first_reader: Mapping[str, str], itemsize: int) -> int:
        """The most that covariances, bases and decompositions under way hold at once.

        Args:
            first_reader: {map: the first map that reads the same input}.
            itemsize: bytes of an entry of the covariances.
        """
        if not self._on_host:
            return self._stacked_peak_bytes(first_reader, itemsize)
        held: deque[int] = deque(maxlen=self._workers + 2)
        remembered: deque[int] = deque(maxlen=REMEMBERED)
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
            decomposing = under_way * COPIES * self._dtype.itemsize * width**2
            reading = 2 * covariances
            peak = max(peak, sum(held) + sum(remembered) + max(decomposing, reading))
        return peak

    def _stacked_peak_bytes(self, first_reader: Mapping[str, str], itemsize: int) -> int:
        """:meth:`peak_bytes` where matrices go in stacks.

        Of a matrix there is the covariance or the basis; both while its stack is decomposed, and
        as long as its covariance is remembered.
        """
        waiting: deque[int] = deque()
        remembered: deque[int] = deque(maxlen=REMEMBERED)
        stack = peak = 0
        for name, one in self._maps.items():
            widths = [one.d_out]
            if first_reader.get(name, name) == name:
                widths.append(one.d_in)
                remembered.append(itemsize * one.d_in**2)
            for width in widths:
                copies = COPIES * self._dtype.itemsize + itemsize
                own = self._together(width, self._devices[name]) * copies * width**2
                stack = max(stack, own)
            waiting.append(sum(itemsize * width**2 for width in widths))
            # One more basis is on its way to the disk.
            peak = max(peak, sum(waiting) + sum(remembered) + stack + max(waiting))
            while sum(waiting) > waiting_bytes():
                waiting.popleft()
        return peak


def _covariance(width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(width, width, generator=generator)
    return rows @ rows.T / width
