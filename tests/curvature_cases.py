"""Factors of a tiny network in float64, and how near two computations of one number come."""

import torch
from math_utils.curvature import CurvatureConfig, fit_curvature

DOUBLE = torch.float64
EXACT = {"rtol": 1e-9, "atol": 1e-12}
GROUPS = [[0, 1, 2], [3], [4, 5, 6, 7]]


def config(strategy):
    return CurvatureConfig(strategy=strategy, covariance_dtype=DOUBLE)


def fit(problem, loss, strategy, groups=None):
    batches = problem.batches(*(groups or [problem.all_rows()]))
    return fit_curvature(problem.model, problem.maps, batches, loss, config(strategy))
