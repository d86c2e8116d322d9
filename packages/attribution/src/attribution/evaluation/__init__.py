"""Retrieval metrics for scores of training examples against a known truth."""

from attribution.evaluation.bootstrap import bootstrap_interval
from attribution.evaluation.composition import composition_at_k
from attribution.evaluation.lds import (
    evaluate_lds,
    foretellable,
    linear_datamodeling_scores,
    luck_of_subsets,
    retraining_agreement,
)
from attribution.evaluation.metrics import (
    average_precision,
    ndcg,
    precision_at_k,
    recall_at_k,
    reciprocal_rank,
    roc_auc,
    tied_pair_share,
)
from attribution.evaluation.report import MetricEstimate, RetrievalReport, evaluate_retrieval

__all__ = [
    "MetricEstimate",
    "RetrievalReport",
    "average_precision",
    "bootstrap_interval",
    "composition_at_k",
    "evaluate_lds",
    "evaluate_retrieval",
    "foretellable",
    "linear_datamodeling_scores",
    "luck_of_subsets",
    "ndcg",
    "precision_at_k",
    "recall_at_k",
    "reciprocal_rank",
    "retraining_agreement",
    "roc_auc",
    "tied_pair_share",
]
