"""Telling an allocation that failed from other errors, and letting go of what it held."""

import gc
from collections.abc import Callable

import torch

_MESSAGES = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
)
"""Of plain RuntimeErrors: the CPU's allocator, and CUDA and its libraries where torch's own
allocator has left them too little (a library takes memory of its own at its first call)."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be had, on an accelerator or on the CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(part in str(error) for part in _MESSAGES)


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
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    return True
