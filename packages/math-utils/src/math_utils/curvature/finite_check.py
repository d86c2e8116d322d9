"""Checks that captured pairs are finite, for which an accelerator does not wait.

To read a number from an accelerator is to wait until it has done all that it was given, and it
then idles until it is given more. So what a check of one map found is copied to main memory while
the device goes on, and read when the pair of the next map is there: by then the device has the
work in between before it. The pair is held back meanwhile, so that one that is not finite is in no
sum, and its example can still be looked for. That is the memory of one more pair.
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from math_utils._typing import Tensor
from math_utils.capture import CapturedPair
from math_utils.errors import CurvatureError, NonFiniteError
from math_utils.language_modeling import TokenBatch

NUM_HELD = {"cuda": 1}
"""Pairs that wait for what comes after them; other devices read at once what they find."""


@contextmanager
def check_finite(
    batch: TokenBatch, consume: Callable[[CapturedPair], None]
) -> Iterator["FiniteCheck"]:
    """``consume`` behind a check of every pair; all that passed are consumed in the end.

    Args:
        batch: what the pairs are of; its keys name an example.
        consume: called once per pair, in their order.

    Raises:
        NonFiniteError: where a pair is not finite, with the example and the module.
    """
    check = FiniteCheck(batch, consume)
    yield check
    check.flush()


class FiniteCheck:
    """Takes pairs, and passes on those that are finite."""

    def __init__(self, batch: TokenBatch, consume: Callable[[CapturedPair], None]) -> None:
        self._batch = batch
        self._consume = consume
        self._held: deque[tuple[CapturedPair, _Outcome]] = deque()

    def __call__(self, pair: CapturedPair) -> None:
        """Begin to check a pair, and pass on those that have waited for it."""
        self._held.append((pair, _begin(pair)))
        self._pass_on(NUM_HELD.get(pair.inputs.device.type, 0))

    def flush(self) -> None:
        """Pass on every pair."""
        self._pass_on(0)

    @torch.no_grad()
    def _pass_on(self, num_held: int) -> None:
        while len(self._held) > num_held:
            pair, outcome = self._held.popleft()
            if not outcome.read():
                raise _find_non_finite(pair, self._batch)
            self._consume(pair)


@dataclass(frozen=True, eq=False)
class _Outcome:
    """What a check finds: in main memory once the event has come, if there is one."""

    is_finite: Tensor
    arrived: torch.cuda.Event | None

    def read(self) -> bool:
        if self.arrived is not None:
            self.arrived.synchronize()
        return bool(self.is_finite)


def _begin(pair: CapturedPair) -> _Outcome:
    sum_of_inputs = pair.shared("sum", pair.inputs.sum)
    is_finite = torch.isfinite(pair.output_gradients.sum() + sum_of_inputs)
    if is_finite.device.type != "cuda":
        return _Outcome(is_finite, None)
    # Into pinned memory, without which the copy would be waited for.
    on_host = is_finite.to("cpu", non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(is_finite.device))
    return _Outcome(on_host, arrived)


def _find_non_finite(pair: CapturedPair, batch: TokenBatch) -> CurvatureError:
    for row, (inputs, gradients) in enumerate(pair.examples()):
        for what, tensor in (("input", inputs), ("output gradient", gradients)):
            if not torch.isfinite(tensor).all():
                return NonFiniteError(f"the {what} of {pair.name}", int(batch.example_keys[row]))
    return CurvatureError(f"{pair.name}: sums over its positions overflow {pair.inputs.dtype}")
