"""What plans are compared with, stage by stage, in place of a few batches that are run.

The peaks of whole runs hide any stage but the greatest; beside given trials every one shows.
"""

from collections.abc import Iterable

import numpy as np
from if_query.device_memory import Memory
from if_query.plan.trials import Trial
from torch import Tensor

LOADED, HELD = Memory(30_000), Memory(20_000)
"""Held by the process when the model is there, and before a stage."""
RATE = 1e6
"""Bytes of files a second."""


def trial(peak: int, *seconds: float) -> Trial:
    return Trial(Memory(peak), np.array(seconds))


def bytes_of(tensors: Iterable[Tensor | np.ndarray | None]) -> int:
    return sum(one.nbytes for one in tensors if one is not None)
