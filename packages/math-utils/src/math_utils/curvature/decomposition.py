"""Eigendecompositions of covariances: side by side on a CPU, in stacks on an accelerator.

A single eigendecomposition keeps neither kind of device busy until it is thousands wide: half of
its arithmetic is products of a matrix with one vector after another. A CPU then does better with
one matrix per thread; an accelerator has no such threads, but takes matrices of one width as a
stack. (Whether the library then works on them at once is up to its version: torch has called
cuSOLVER matrix by matrix above a width of 32, github.com/pytorch/pytorch/issues/175585.)
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch

from math_utils._typing import SquareMatrix, Tensor, Vector
from math_utils.curvature.covariance import Covariances
from math_utils.curvature.eigenbasis import REMEMBERED, Eigenbasis, equal_in
from math_utils.linalg import stacked_eigendecompositions, symmetric_eigendecomposition

_Decomposition = Future[tuple[Vector, SquareMatrix]]

COPIES = 4
"""Matrices in the dtype of the decomposition that one holds: itself, its vectors, two of LAPACK."""

STACK_BYTES = 1 << 30
"""Of a stack, copies counted. In float64 that is 512 matrices of width 256 and 8 of width 2,048;
those wider than 4,096 go alone. Where stacks pay, matrices are small, and so more would gain
nothing; and beside the model and what is kept for later passes there is a gigabyte."""

_WAITING_STACKS = 2
"""Maps wait for others until their covariances and bases take as much as so many stacks."""

_MAX_WORKERS = 16
_ALONE = 4096
"""Wider matrices are decomposed one at a time: each needs several copies in float64."""


@dataclass(frozen=True, eq=False)
class _WaitingMap:
    """A map whose decompositions are under way, or wait for their stacks to fill."""

    name: str
    num_positions: int
    inputs: _Decomposition
    outputs: _Decomposition
    num_bytes: int

    def finish(self) -> tuple[str, Eigenbasis]:
        input_values, input_basis = self.inputs.result()
        output_values, output_basis = self.outputs.result()
        basis = Eigenbasis(
            input_basis, output_basis, input_values, output_values, self.num_positions
        )
        return self.name, basis


def decompose(
    covariances: Iterable[tuple[str, Covariances]],
    *,
    dtype: torch.dtype = torch.float64,
    stack_bytes: int | None = None,
) -> Iterator[tuple[str, Eigenbasis]]:
    """Eigenbases, one map after another.

    Maps that read the same inputs have equal covariances A; each is decomposed once and its
    basis shared. On a CPU, matrices up to 4,096 wide go side by side, one thread each, because
    half of an eigendecomposition hardly gains from a second thread. On an accelerator, matrices
    of one width go in stacks. Few maps are read ahead for that: as many as there are threads, or
    as fill two stacks.

    Args:
        covariances: (name, covariances) of every map, on the device where they are to be
            decomposed; may be read from disk one by one.
        dtype: dtype of the decompositions.
        stack_bytes: memory of a stack, copies counted; given, matrices go in stacks on a CPU too.
            None is ``STACK_BYTES`` on accelerators.

    Yields:
        (name, its eigenbasis), in the order of ``covariances``.

    Raises:
        CurvatureError: if a covariance or a decomposition is not finite, with the map's name.
    """
    workers = max(1, min(torch.get_num_threads(), _MAX_WORKERS))
    stacks = _Stacks(dtype, stack_bytes or STACK_BYTES)
    recent: list[tuple[Tensor, _Decomposition]] = []
    waiting: deque[_WaitingMap] = deque()
    with ThreadPoolExecutor(workers) as pool:

        def start(matrix: Tensor, what: str) -> _Decomposition:
            if in_stacks(matrix):
                return stacks.start(matrix, what)
            return _start(pool, matrix, dtype, what)

        def in_stacks(matrix: Tensor) -> bool:
            return stack_bytes is not None or matrix.device.type != "cpu"

        for name, covariance in covariances:
            inputs, outputs = covariance.inputs, covariance.output_gradients
            num_bytes = outputs.nbytes
            known = equal_in(recent, inputs)
            if known is None:
                known = start(inputs, f"{name}: covariance of inputs")
                recent = [*recent[1 - REMEMBERED :], (inputs, known)]
                num_bytes += inputs.nbytes
            started = start(outputs, f"{name}: covariance of output gradients")
            own_bytes = num_bytes if in_stacks(outputs) else 0
            waiting.append(_WaitingMap(name, covariance.num_positions, known, started, own_bytes))
            while _is_enough(waiting, workers, _WAITING_STACKS * stacks.max_bytes):
                yield waiting.popleft().finish()
        while waiting:
            yield waiting.popleft().finish()


def matrices_per_stack(width: int, dtype: torch.dtype, stack_bytes: int = STACK_BYTES) -> int:
    """How many matrices of a width go together; one at the least."""
    return max(1, stack_bytes // (COPIES * dtype.itemsize * width**2))


def waiting_bytes(stack_bytes: int = STACK_BYTES) -> int:
    """What maps that wait for their stacks hold at most, when one more has been read."""
    return _WAITING_STACKS * stack_bytes


def _is_enough(waiting: deque[_WaitingMap], workers: int, max_bytes: int) -> bool:
    side_by_side = sum(not one.num_bytes for one in waiting)
    return side_by_side > workers or sum(one.num_bytes for one in waiting) > max_bytes


def _start(pool: Executor, matrix: Tensor, dtype: torch.dtype, name: str) -> _Decomposition:
    """Decompose small matrices one per thread, large ones with all threads together."""
    run = partial(symmetric_eigendecomposition, matrix, dtype=dtype, name=name)
    if matrix.shape[0] > _ALONE:
        done: _Decomposition = Future()
        done.set_result(run())
        return done

    def on_one_thread() -> tuple[Vector, SquareMatrix]:
        torch.set_num_threads(1)  # of the calling thread, here the pool's
        return run()

    return pool.submit(on_one_thread)


class _Stacks:
    """The stacks that are being filled, one for each width on each device."""

    def __init__(self, dtype: torch.dtype, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._dtype = dtype
        self._filling: dict[tuple[int, torch.device, torch.dtype], _Stack] = {}

    def start(self, matrix: Tensor, name: str) -> _Decomposition:
        """Put a matrix into its stack, which is decomposed when it is full."""
        width = matrix.shape[0]
        stack = self._filling.setdefault(
            (width, matrix.device, matrix.dtype),
            _Stack(self._dtype, matrices_per_stack(width, self._dtype, self.max_bytes)),
        )
        return stack.add(matrix, name)


class _Stack:
    """Matrices that are decomposed together, and then others."""

    def __init__(self, dtype: torch.dtype, size: int) -> None:
        self._dtype = dtype
        self._size = size
        self._waiting: list[tuple[Tensor, str, _Stacked]] = []

    def add(self, matrix: Tensor, name: str) -> "_Stacked":
        stacked = _Stacked(self)
        self._waiting.append((matrix, name, stacked))
        if len(self._waiting) == self._size:
            self.run()
        return stacked

    def run(self) -> None:
        """Decompose what is there."""
        matrices, names, stacked = zip(*self._waiting, strict=True)
        self._waiting.clear()
        outcomes = stacked_eigendecompositions(matrices, names, dtype=self._dtype)
        for one, outcome in zip(stacked, outcomes, strict=True):
            if isinstance(outcome, tuple):
                one.set_result(outcome)
            else:
                one.set_exception(outcome)


class _Stacked(Future[tuple[Vector, SquareMatrix]]):
    """A decomposition whose stack need not be full: it is done when its result is asked for."""

    def __init__(self, stack: _Stack) -> None:
        super().__init__()
        self._stack = stack

    def result(self, timeout: float | None = None) -> tuple[Vector, SquareMatrix]:
        if not self.done():
            self._stack.run()
        return super().result(timeout)
