"""Passes over data: planned batches on the model's device, and errors that name the example."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from math_utils.errors import CurvatureError, NonFiniteError
from math_utils.language_modeling import TokenBatch

from if_query.batching import collate
from if_query.datasets import TokenDataset
from if_query.errors import InputError
from if_query.models import input_device
from if_query.out_of_memory import is_out_of_memory

FLOAT16_LOSS_SCALE = 1024.0
"""Keeps gradients of a float16 model above its smallest number, 6e-8."""


def loss_scale_of(dtype: str) -> float:
    """What the loss of a model in this precision is multiplied by before the backward pass."""
    return FLOAT16_LOSS_SCALE if dtype == "float16" else 1.0


def load_batches(
    model: Any, dataset: TokenDataset, plan: Sequence[Sequence[int]]
) -> Iterator[TokenBatch]:
    """The planned batches, on the device of the model's input embedding."""
    device = input_device(model)
    for rows in plan:
        yield collate(dataset, rows, dataset.keys).to(device)


@contextmanager
def curvature_errors(dataset: TokenDataset, describe: Callable[[int], str]) -> Iterator[None]:
    """Turn what data or model cause into input errors that name the example as the user knows it.

    Args:
        dataset: the examples that batches are made of.
        describe: names the example in a row.

    Raises:
        InputError: in place of a :class:`~math_utils.errors.CurvatureError`, and of memory that
            could not be had.
    """
    try:
        yield
    except NonFiniteError as error:
        row = int(np.flatnonzero(dataset.keys == error.example_key)[0])
        raise InputError(error.describe(describe(row))) from error
    except CurvatureError as error:
        raise InputError(str(error)) from error
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(
            f"out of memory: {(str(error) or type(error).__name__).splitlines()[0]}; see with "
            "--plan what the stages need"
        ) from error
