"""Methods that compare an old and a new checkpoint: (checkpoints, documents, queries) → scores."""

from attribution.methods.attr_weighted_change import attr_weighted_change, weighted_changes
from attribution.methods.causal_patching import (
    Patcher,
    PatchOptions,
    causal_patching,
    largest_dimensions,
    patching_scores,
)
from attribution.methods.dh_similarity import dh_similarity
from attribution.methods.dlp_probes import ProbeOptions, deal_folds, dlp_probes
from attribution.methods.grad_similarity import grad_similarity

__all__ = [
    "PatchOptions",
    "Patcher",
    "ProbeOptions",
    "attr_weighted_change",
    "causal_patching",
    "deal_folds",
    "dh_similarity",
    "dlp_probes",
    "grad_similarity",
    "largest_dimensions",
    "patching_scores",
    "weighted_changes",
]
