"""Fisher information of linear maps: identity, diagonal, K-FAC and EK-FAC, and its inverse.

Sources: Martens and Grosse 2015 (arXiv 1503.05671) for K-FAC; George et al. 2018
(arXiv 1806.03884) for EK-FAC; Grosse et al. 2023 (arXiv 2308.03296) for influence with it.
"""

from math_utils.curvature.config import STRATEGIES, CurvatureConfig, Damping, Strategy
from math_utils.curvature.covariance import Covariances, CovarianceSums
from math_utils.curvature.eigenbasis import (
    Eigenbasis,
    decompose,
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
from math_utils.curvature.queries import Queries, collect_queries
from math_utils.curvature.scores import BatchScores, score_batch, self_influence

__all__ = [
    "STRATEGIES",
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
    "Strategy",
    "assemble",
    "backward_pass",
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
