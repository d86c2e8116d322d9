"""Corrected eigenvalues: Λ = (1/N) Σ_n (Q_Sᵀ G_n Q_A)², entry by entry.

They are the diagonal of the Fisher information in the Kronecker-factored eigenbasis, which makes
EK-FAC the closest to the Fisher, in Frobenius norm, of all matrices that are diagonal in it
(George et al. 2018, arXiv 1806.03884, section 3). Without bases they are the diagonal of the
Fisher in the weights' own basis.

Q_Sᵀ G_n Q_A = Σ_t (Q_Sᵀ δ_t)(Q_Aᵀ a_t)ᵀ: positions are rotated before they are summed, which
costs T (d_in² + d_out²) for a batch rather than N d_in d_out (d_in + d_out) for its gradients.
"""

from collections.abc import Iterator, Mapping

import torch

from math_utils._typing import Float, Tensor
from math_utils.capture import CapturedPair
from math_utils.curvature.eigenbasis import Eigenbasis, rotate_pair
from math_utils.curvature.gradients import gradient_chunks
from math_utils.errors import CurvatureError
from math_utils.linear_maps import LinearMap


class EigenvalueSums:
    """Running sums of squared rotated gradients, which can be stopped and taken up again."""

    def __init__(
        self,
        maps: Mapping[str, LinearMap],
        bases: Mapping[str, Eigenbasis] | None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Sums for ``maps`` in ``bases``, or in the weights' own basis where that is None."""
        self._maps = maps
        self._bases = bases
        self._dtype = dtype
        self._squares: dict[str, Tensor] = {}

    def add(self, pair: CapturedPair) -> None:
        """Take in one captured pair."""
        linear_map = self._maps[pair.name]
        if pair.name not in self._squares:
            self._squares[pair.name] = torch.zeros(
                linear_map.d_out, linear_map.d_in, dtype=self._dtype, device=pair.inputs.device
            )
        inputs, gradients = pair.inputs, pair.output_gradients
        if self._bases is not None:
            basis = self._bases[pair.name]
            inputs, gradients = rotate_pair(pair, basis.input_basis, basis.output_basis)
        total = self._squares[pair.name]
        for _, chunk in gradient_chunks(inputs, gradients, pair.lengths):
            if len(chunk) == 1:
                total.addcmul_(chunk[0], chunk[0])
            else:
                total += chunk.square_().sum(dim=0)

    def state(self) -> dict[str, Tensor]:
        """Everything needed to go on, as tensors; shares memory with the sums."""
        return {f"{name}.squares": tensor for name, tensor in self._squares.items()}

    def load(
        self, state: Mapping[str, Tensor], devices: Mapping[str, torch.device] | None = None
    ) -> None:
        """Go on from what :meth:`state` gave, each map on its device (the CPU by default)."""
        for name in self._maps:
            if f"{name}.squares" in state:
                device = torch.device("cpu") if devices is None else devices[name]
                self._squares[name] = state[f"{name}.squares"].to(device).clone()

    def finish(self, num_examples: int) -> dict[str, Float[Tensor, "d_out d_in"]]:
        """Λ of every map, in nats² per unit weight² of one example; the sums stay as they are.

        Raises:
            CurvatureError: if a map never ran, named.
        """
        copy = EigenvalueSums(self._maps, self._bases, self._dtype)
        copy._squares = {name: squares.clone() for name, squares in self._squares.items()}
        return dict(copy.drain(num_examples))

    def drain(self, num_examples: int) -> Iterator[tuple[str, Float[Tensor, "d_out d_in"]]]:
        """Λ map by map, in place of the sums, which are given up: no map is copied.

        Raises:
            CurvatureError: as for :meth:`finish`, before the first map.
        """
        if silent := [name for name in self._maps if name not in self._squares]:
            raise CurvatureError(
                f"{', '.join(silent[:3])} ({len(silent)} in all) never ran on the data, so there "
                "is nothing to fit; leave them out of the tracked modules"
            )
        for name in self._maps:
            yield name, self._squares.pop(name).div_(num_examples)
