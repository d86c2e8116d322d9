"""Memory of the host and of the devices a model is on: what is free, held, and held at the peak."""

import os
import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_LIMITS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)
"""A container's limit and use, under both versions of Linux control groups."""


@dataclass
class Memory:
    """Bytes of this process.

    Attributes:
        host: resident in main memory.
        device: held by tensors on accelerators, all of them together; 0 on the CPU.
    """

    host: int = 0
    device: int = 0

    def on(self, devices: Sequence[torch.device]) -> int:
        """The bytes that count for these devices: main memory where they are the CPU."""
        return self.host if is_host(devices) else self.device


def is_host(devices: Sequence[torch.device]) -> bool:
    """Whether statistics on these devices are in main memory."""
    return all(device.type == "cpu" for device in devices)


def free_memory(devices: Sequence[torch.device]) -> int:
    """Bytes that may still be taken on these devices, together."""
    unlike = set(devices)
    accelerators = [device for device in unlike if device.type == "cuda"]
    free = sum(map(_free_on, accelerators))
    return free + (free_host_memory() if len(accelerators) < len(unlike) else 0)


def _free_on(device: torch.device) -> int:
    """What CUDA has free, and what torch's allocator keeps of what tensors gave back."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0] + kept)


def free_host_memory() -> int:
    """Bytes of main memory that may still be taken, a container's limit counted."""
    free = int(psutil.virtual_memory().available)
    for limit, used in _LIMITS:
        if limit.is_file() and (allowed := limit.read_text().strip()).isdigit():
            free = min(free, int(allowed) - int(used.read_text()))
    return max(free, 0)


def held_memory() -> Memory:
    """What this process holds now."""
    held = sum(map(torch.cuda.memory_allocated, _in_use()))
    return Memory(int(psutil.Process().memory_info().rss), held)


def peak_memory() -> Memory:
    """What this process held at its peak, or since :func:`peak_of` last began."""
    return Memory(_host_peak(), sum(map(torch.cuda.max_memory_allocated, _in_use())))


def wait_for_devices() -> None:
    """Until accelerators have done all that they were given: a CPU's clock sees no more of it."""
    for device in _in_use():
        torch.cuda.synchronize(device)


def _in_use() -> range:
    """The CUDA devices, once this process uses any of them.

    To ask one before would start it: hundreds of megabytes in a run on the CPU.
    """
    return range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)


@contextmanager
def peak_of() -> Iterator[Memory]:
    """Measure the peak inside the context; what it gives is filled when the context ends.

    Where the host's peak cannot be started afresh (other than on Linux), that of the whole process
    so far is given.
    """
    if os.access(_CLEAR, os.W_OK):
        _CLEAR.write_text("5")
    for device in _in_use():
        torch.cuda.reset_peak_memory_stats(device)
    found = Memory()
    yield found
    peak = peak_memory()
    found.host, found.device = peak.host, peak.device


def _host_peak() -> int:
    if _STATUS.is_file():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    # Kibibytes, but bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
