"""Fisher information of linear maps: identity, diagonal, K-FAC and EK-FAC, and its inverse.

```python
import torch
from math_utils.capture import frozen
from math_utils.curvature import Damping, collect_queries, fit_curvature, score_batch
from math_utils.language_modeling import TokenBatch
from math_utils.linear_maps import find_linear_maps

model = torch.nn.Sequential(torch.nn.Embedding(50, 8), torch.nn.Linear(8, 50))
ids = [[1, 2, 3, 4], [5, 6, 7], [1, 2, 3, 9]]
batch = TokenBatch.collate(ids, ids, example_keys=range(3))


def objective(model, batch):  # loss of each example: summed over its labels, in nats
    logits = model(batch.input_ids)[:, :-1].transpose(1, 2)
    targets = batch.labels[:, 1:]  # -100, which is ignored, on padding and prompts
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none").sum(dim=1)


maps = find_linear_maps(model, lambda name: name == "1")
factors = fit_curvature(model, maps, [batch], objective)
with frozen(model):
    queries, losses = collect_queries(model, maps, [batch], objective, factors, Damping())
    scores = score_batch(model, maps, batch, objective, queries).total
print(scores.shape)  # torch.Size([3, 3]), [query, train], positive = helpful
```

Sources: Martens and Grosse 2015 (arXiv 1503.05671) for K-FAC; George et al. 2018
(arXiv 1806.03884) for EK-FAC; Grosse et al. 2023 (arXiv 2308.03296) for influence with it.
"""

from math_utils.curvature.config import STRATEGIES, CurvatureConfig, Damping, Strategy
from math_utils.curvature.covariance import Covariances, CovarianceSums
from math_utils.curvature.decomposition import decompose
from math_utils.curvature.eigenbasis import (
    Eigenbasis,
    kfac_eigenvalues,
    rotate,
    rotate_back,
    share_equal_bases,
)
from math_utils.curvature.eigenvalues import EigenvalueSums
from math_utils.curvature.factors import CurvatureFactors, MapFactors
from math_utils.curvature.fit import assemble, fit_curvature
from math_utils.curvature.gradients import (
    Objective,
    backward_pass,
    collect_gradients,
    gradient_chunks,
)
from math_utils.curvature.precondition import precondition, precondition_all
from math_utils.curvature.queries import Bases, Queries, bases_to_keep, collect_queries
from math_utils.curvature.replayed import ReplayedPasses
from math_utils.curvature.scores import BatchScores, score_batch, self_influence

__all__ = [
    "STRATEGIES",
    "Bases",
    "BatchScores",
    "CovarianceSums",
    "Covariances",
    "CurvatureConfig",
    "CurvatureFactors",
    "Damping",
    "Eigenbasis",
    "EigenvalueSums",
    "MapFactors",
    "Objective",
    "Queries",
    "ReplayedPasses",
    "Strategy",
    "assemble",
    "backward_pass",
    "bases_to_keep",
    "collect_gradients",
    "collect_queries",
    "decompose",
    "fit_curvature",
    "gradient_chunks",
    "kfac_eigenvalues",
    "precondition",
    "precondition_all",
    "rotate",
    "rotate_back",
    "score_batch",
    "self_influence",
    "share_equal_bases",
]
