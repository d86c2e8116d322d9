"""All methods by name: the one place to add one, for the scripts, the leaderboard, the ablations.

A name is the middle of the key ``<GN>_NAME_score`` in result rows and the stem of file names.
"""

from utils.attribution_method import Method
from utils.baseline_methods import (
    BM25,
    EditDistance,
    Random,
    RepresentationSimilarity,
    TfIdf,
)
from utils.checkpoint_methods import (
    AttrWeightedChange,
    CausalPatching,
    DhSimilarity,
    GradSimilarity,
)
from utils.gradient_methods import Curvature, DataInf, GradientCosine, TracIn, TrackStar
from utils.peer_methods import Bergson, Kronfluence
from utils.probe_methods import DlpProbes

METHODS: dict[str, Method] = {
    "dh_similarity": DhSimilarity(),
    "dh_similarity_text": DhSimilarity(pooling="text"),
    "dh_similarity_answers": DhSimilarity(document_span="answers"),
    "grad_similarity": GradSimilarity(),
    "grad_similarity_text": GradSimilarity(pooling="text"),
    "grad_similarity_answers": GradSimilarity(document_span="answers"),
    "attr_weighted_change": AttrWeightedChange(),
    "attr_weighted_change_text": AttrWeightedChange(pooling="text"),
    "attr_weighted_change_ig": AttrWeightedChange(pooling="text", ig_steps=8),
    "attr_weighted_change_answers": AttrWeightedChange(document_span="answers"),
    "causal_patching": CausalPatching(),
    "causal_patching_text": CausalPatching(pooling="text", span="text"),
    "causal_patching_answers": CausalPatching(document_span="answers", layers=(-1,)),
    "dlp_probes": DlpProbes(),
    "gradient_cosine": GradientCosine(),
    "tracin": TracIn(),
    "tracin_unit": TracIn(unit_norm=True),
    "trackstar": TrackStar(),
    "datainf": DataInf(),
    "datainf_both": DataInf(target="both"),
    "kfac": Curvature(strategy="kfac"),
    "ekfac": Curvature(),
    "kronfluence": Kronfluence(),
    "bergson": Bergson(),
    "representation_similarity": RepresentationSimilarity(),
    "representation_similarity_middle": RepresentationSimilarity(layer="middle"),
    "representation_similarity_mean": RepresentationSimilarity(layer="mean"),
    "bm25": BM25(),
    "bm25_prompt": BM25(query_text="prompt"),
    "bm25_answer": BM25(query_text="answer"),
    "tfidf": TfIdf(),
    "tfidf_prompt": TfIdf(query_text="prompt"),
    "edit_distance": EditDistance(),
    "edit_distance_prompt": EditDistance(query_text="prompt"),
    "random": Random(),
}
