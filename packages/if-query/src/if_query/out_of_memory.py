"""Telling an allocation that failed from other errors, and letting go of what it held."""

import gc
from collections.abc import Callable

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be had, on an accelerator or on the CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # The CPU's allocator raises a plain RuntimeError.
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def runs_out_of_memory(attempt: Callable[[], None]) -> bool:
    """Call ``attempt``; whether it failed for want of memory. Other errors go on.

    Afterwards nothing is held by the error any more: the frames of its traceback, and with them
    the tensors of the failed batch, are gone.
    """
    try:
        attempt()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    else:
        return False
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return True
