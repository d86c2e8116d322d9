"""Baselines: what attribution must beat. Each gives scores [query, train], higher is closer."""

from attribution.baselines.bm25 import bm25_scores
from attribution.baselines.edit_distance import edit_distance_scores
from attribution.baselines.random import random_scores
from attribution.baselines.representation_similarity import representation_similarity_scores
from attribution.baselines.tfidf import tfidf_scores

__all__ = [
    "bm25_scores",
    "edit_distance_scores",
    "random_scores",
    "representation_similarity_scores",
    "tfidf_scores",
]
