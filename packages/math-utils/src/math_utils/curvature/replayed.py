"""Several passes over the same batches, the later ones without most of the model."""

from collections.abc import Callable, Hashable, Mapping

import torch
from torch import nn

from math_utils.capture import CapturedPair
from math_utils.curvature.finite_check import check_finite
from math_utils.curvature.gradients import Objective, backward_pass
from math_utils.language_modeling import TokenBatch
from math_utils.linear_maps import LinearMap
from math_utils.replay import KeptBatch, find_segments, record_segments, replay_segments


class ReplayedPasses:
    """Passes with one loss over batches that are the same each time.

    The first pass over a batch keeps what :mod:`math_utils.replay` needs, as long as there is
    room; later ones then cost the segments that hold the maps and not the model. In bits, pairs
    do not depend on whether a batch was kept.
    """

    def __init__(
        self, model: nn.Module, maps: Mapping[str, LinearMap], objective: Objective, max_bytes: int
    ) -> None:
        """Nothing is kept yet.

        Args:
            model: in the state that :func:`math_utils.capture.frozen` gives, in every pass.
            maps: all maps that any pass will ask for.
            objective: the loss of every example; the same whenever it is called.
            max_bytes: of all that is kept, on the devices where it arises; 0 keeps nothing.
        """
        self._model = model
        self._maps = maps
        self._objective = objective
        self._max_bytes = max_bytes
        self._is_keeping = max_bytes > 0
        self._segments = find_segments(model, maps)
        self._kept: dict[Hashable, KeptBatch] = {}

    @property
    def num_bytes(self) -> int:
        """What is kept."""
        return sum(one.num_bytes for one in self._kept.values())

    @property
    def num_batches(self) -> int:
        """How many batches are kept."""
        return len(self._kept)

    def keep_no_more(self) -> None:
        """No pass will follow the next one; what was kept can still be replayed."""
        self._is_keeping = False

    def forget(self) -> None:
        """Give up what was kept, and keep nothing more."""
        self._kept.clear()
        self._is_keeping = False

    def run(
        self,
        key: Hashable,
        maps: Mapping[str, LinearMap],
        batch: TokenBatch,
        consume: Callable[[CapturedPair], None],
        *,
        dtype: torch.dtype = torch.float32,
        loss_scale: float = 1.0,
    ) -> None:
        """One pass over a batch; every map's pair goes to ``consume``.

        Args:
            key: names the batch: its examples, their order and their padding.
            maps: the maps to watch, all of them or some.
            batch: on the device of the model's input embedding.
            consume: called once per map.
            dtype: what captured tensors are cast to.
            loss_scale: as for :func:`~math_utils.curvature.gradients.backward_pass`.

        Raises:
            NonFiniteError: if a loss or a gradient is not finite, with the example and the module.
        """
        kept = self._kept.get(key)
        if kept is not None:
            with check_finite(batch, consume) as checked:
                replay_segments(
                    self._segments, kept, maps, batch.attention_mask, checked, dtype=dtype
                )
            return

        if not self._is_keeping:
            backward_pass(
                self._model,
                maps,
                batch,
                self._objective,
                consume,
                dtype=dtype,
                loss_scale=loss_scale,
            )
            return

        def keep(found: KeptBatch) -> None:
            self._is_keeping = self.num_bytes + found.num_bytes <= self._max_bytes
            if self._is_keeping:
                self._kept[key] = found

        def consume_asked(pair: CapturedPair) -> None:
            if pair.name in maps:
                consume(pair)

        # All maps are watched, so that gradients reach every segment.
        backward_pass(
            self._model,
            self._maps,
            batch,
            self._objective,
            consume_asked,
            dtype=dtype,
            loss_scale=loss_scale,
            recording=lambda scale: record_segments(
                self._segments, self._maps, keep, loss_scale=scale
            ),
        )
