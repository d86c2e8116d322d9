"""Covariances of layer inputs and output gradients: A = (1/T) Σ a aᵀ, S = (1/T) Σ δ δᵀ."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from math_utils._typing import Float, Tensor
from math_utils.capture import CapturedPair
from math_utils.errors import CurvatureError
from math_utils.linalg import add_blocks_, add_gram_, gram_blocks, symmetrize_
from math_utils.linear_maps import LinearMap


@dataclass(frozen=True, eq=False)
class Covariances:
    """Second moments of one map, about zero, averaged over the positions where it ran.

    Attributes:
        inputs: A = (1/T) Σ_t a_t a_tᵀ over unpadded positions, [d_in, d_in].
        output_gradients: S = (1/T) Σ_t δ_t δ_tᵀ, [d_out, d_out], in nats² per unit output².
        num_positions: T, counted once per use where the map runs several times.
    """

    inputs: Float[Tensor, "d_in d_in"]
    output_gradients: Float[Tensor, "d_out d_out"]
    num_positions: int

    def to(self, device: torch.device) -> "Covariances":
        """The same covariances on another device."""
        return Covariances(
            self.inputs.to(device), self.output_gradients.to(device), self.num_positions
        )


class CovarianceSums:
    """Running sums Σ a aᵀ and Σ δ δᵀ of every map, which can be stopped and taken up again."""

    def __init__(self, maps: Mapping[str, LinearMap], dtype: torch.dtype = torch.float32) -> None:
        self._dtype = dtype
        self._maps = maps
        self._inputs: dict[str, Tensor] = {}
        self._gradients: dict[str, Tensor] = {}
        self._num_positions = dict.fromkeys(maps, 0)

    def add(self, pair: CapturedPair) -> None:
        """Take in one captured pair; only the upper triangles of the sums are kept up."""
        linear_map = self._maps[pair.name]
        if pair.name not in self._inputs:
            device = pair.inputs.device
            self._inputs[pair.name] = torch.zeros(
                linear_map.d_in, linear_map.d_in, dtype=self._dtype, device=device
            )
            self._gradients[pair.name] = torch.zeros(
                linear_map.d_out, linear_map.d_out, dtype=self._dtype, device=device
            )
        add_blocks_(self._inputs[pair.name], pair.shared("gram", lambda: gram_blocks(pair.inputs)))
        add_gram_(self._gradients[pair.name], pair.output_gradients)
        self._num_positions[pair.name] += len(pair.inputs)

    def state(self) -> dict[str, Tensor]:
        """Everything needed to go on, as tensors; shares memory with the sums."""
        state: dict[str, Tensor] = {}
        for name in self._inputs:
            state[f"{name}.inputs"] = self._inputs[name]
            state[f"{name}.output_gradients"] = self._gradients[name]
            state[f"{name}.num_positions"] = torch.tensor(self._num_positions[name])
        return state

    def load(
        self, state: Mapping[str, Tensor], devices: Mapping[str, torch.device] | None = None
    ) -> None:
        """Go on from what :meth:`state` gave, each map on its device (the CPU by default)."""
        for name in self._maps:
            if f"{name}.inputs" in state:
                device = torch.device("cpu") if devices is None else devices[name]
                self._inputs[name] = state[f"{name}.inputs"].to(device).clone()
                self._gradients[name] = state[f"{name}.output_gradients"].to(device).clone()
                self._num_positions[name] = int(state[f"{name}.num_positions"])

    def finish(self) -> dict[str, Covariances]:
        """The covariances; the sums stay as they are.

        Raises:
            CurvatureError: if a map never ran (it has no covariance), named.
        """
        copy = CovarianceSums(self._maps, self._dtype)
        copy._inputs = {name: sums.clone() for name, sums in self._inputs.items()}
        copy._gradients = {name: sums.clone() for name, sums in self._gradients.items()}
        copy._num_positions = dict(self._num_positions)
        return dict(copy.drain())

    def drain(self) -> Iterator[tuple[str, Covariances]]:
        """The covariances map by map, in place of the sums, which are given up: no map is copied.

        Raises:
            CurvatureError: as for :meth:`finish`, before the first map.
        """
        if silent := [name for name in self._maps if not self._num_positions[name]]:
            raise CurvatureError(
                f"{', '.join(silent[:3])} ({len(silent)} in all) never ran on the data, so there "
                "is nothing to fit; leave them out of the tracked modules"
            )
        for name in self._maps:
            count = self._num_positions[name]
            yield (
                name,
                Covariances(
                    inputs=symmetrize_(self._inputs.pop(name)).div_(count),
                    output_gradients=symmetrize_(self._gradients.pop(name)).div_(count),
                    num_positions=count,
                ),
            )
