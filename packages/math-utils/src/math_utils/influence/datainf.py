"""DataInf: influence with a closed form for the inverse of the damped curvature.

Kwon, Wu, Wu and Zou 2023 (arXiv 2310.00902), equation 5, layer by layer. The inverse of a mean is
replaced by the mean of inverses, each of which Sherman and Morrison give: with g_i the layer's
gradients of n training examples and v that of a probe,

    (1/n Σ_i g_i g_iᵀ + λI)⁻¹ v  ≈  h = (1/(nλ)) Σ_i [ v − (v·g_i) / (λ + ‖g_i‖²) g_i ].

The influence of training example k is Σ_layers h·g_k, positive where it helps (the paper has the
opposite sign), in nats per unit weight of one example: gᵀ(F + λI)⁻¹g with the empirical Fisher F
averaged over examples. Exact for n = 1, and in the limit of large λ.
"""

import torch

from math_utils._typing import Float, Tensor
from math_utils.errors import InfluenceError
from math_utils.influence.base import DEFAULT_DOMAIN, Loader
from math_utils.influence.first_order import GradientInfluenceCalculator
from math_utils.influence.layer_gradients import LayerGradients, row_blocks


class DataInfCalculator(GradientInfluenceCalculator):
    """DataInf over the layers of a target.

    The training gradients are kept unformed, see
    :meth:`~math_utils.influence.gradient.DiscriminativeGradientExtractor.gather` for their
    memory. Results are [num_probe, num_train]; nothing else grows with the product of two
    numbers of examples, or of examples and vocabulary. Training and probe gradients are formed
    twice and once, some rows at a time.
    """

    def compute_influence(
        self,
        train_loader: Loader,
        probe_loader: Loader | None = None,
        *,
        domain: str = DEFAULT_DOMAIN,
    ) -> Float[Tensor, "num_probe num_train"]:
        """The influence of every training example on every probe example; positive = helpful.

        The curvature is that of the training loader's examples, so that the influence of an
        example depends on the others (though not on their order or batches).

        Args:
            train_loader: the training examples, read once.
            probe_loader: the probe examples; None takes the cached ones of ``domain``.
            domain: which cache, where no loader is given.

        Returns:
            Influences on the CPU, in nats per unit weight of one training example.

        Raises:
            InfluenceError: on an empty loader, an example without labels, nothing cached, or
                weights that have changed since the caching.
            NonFiniteError: if a gradient is not finite, with the example and the layer.
        """
        probes = self._probes(probe_loader, domain)
        trained = self.gradient_extractor.gather(train_loader, "train loader")
        parts = [
            layer_influence(trained[name], probes[name], lambda_val=self.config.lambda_val)
            for name in trained
        ]
        return torch.stack(parts).sum(dim=0).cpu()


def layer_influence(
    trained: LayerGradients,
    probes: LayerGradients,
    *,
    lambda_val: float,
    max_elements: int | None = None,
) -> Float[Tensor, "num_probe num_train"]:
    """Equation 5 for one layer, as two sweeps over blocks of rows of the weight.

    The first sweep gives v_k·g_i, ‖g_i‖² and with them λ = lambda_val · mean g² and
    c_ki = (v_k·g_i) / (λ + ‖g_i‖²). The second forms Σ_i c_ki g_i and its products with g_j:

        influence[k, j] = (1/λ) [ v_k·g_j − (1/n) (Σ_i c_ki g_i)·g_j ].

    Where all training gradients are zero, as those of LoRA's A while B is zero, so is influence.

    Args:
        trained: n gradients of the layer.
        probes: those of the probe examples.
        lambda_val: relative damping.
        max_elements: entries formed at once; see :func:`row_blocks`.

    Raises:
        InfluenceError: if the squares of the gradients overflow.
    """
    shape = (probes.num_examples, trained.num_examples)
    device = trained.device
    blocks = list(
        row_blocks(trained, probes, num_queries=probes.num_examples, max_elements=max_elements)
    )
    # With a single block the second sweep need not form it again.
    only = trained.block(*blocks[0]) if len(blocks) == 1 else None
    inner = torch.zeros(shape, dtype=trained.dtype, device=device)
    norms = torch.zeros(trained.num_examples, dtype=trained.dtype, device=device)
    for start, stop in blocks:
        block = only or trained.block(start, stop)
        inner += block.dot(probes.block(start, stop).dense())
        norms += block.squared_norms()
    damping = lambda_val * norms.sum() / (trained.num_examples * trained.num_entries)
    if not torch.isfinite(damping):
        raise InfluenceError(
            f"{trained.name}: expected squared gradients that {norms.dtype} can hold, got infinity;"
            " compute in torch.float64 (InfluenceConfig.dtype)"
        )
    if damping == 0:
        return inner
    coefficients = inner / (damping + norms) / trained.num_examples
    corrections = torch.zeros_like(inner)
    for start, stop in blocks:
        block = only or trained.block(start, stop)
        corrections += block.dot(block.combine(coefficients))
    return (inner - corrections) / damping
