"""What a method must beat: chance, matching text, hidden states, and gradients of parameters."""

from attribution.baselines.bm25 import bm25_scores
from attribution.baselines.datainf import datainf_scores
from attribution.baselines.edit_distance import edit_distance_scores
from attribution.baselines.gradient_cosine import gradient_cosine_scores
from attribution.baselines.random import random_scores
from attribution.baselines.representation_similarity import representation_similarity_scores
from attribution.baselines.tfidf import tfidf_scores
from attribution.baselines.tracin import TracedModel, tracin_scores
from attribution.baselines.trackstar import TrackStarOptions, trackstar_scores

__all__ = [
    "TracedModel",
    "TrackStarOptions",
    "bm25_scores",
    "datainf_scores",
    "edit_distance_scores",
    "gradient_cosine_scores",
    "random_scores",
    "representation_similarity_scores",
    "tfidf_scores",
    "tracin_scores",
    "trackstar_scores",
]
