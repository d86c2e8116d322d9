"""How far do methods come that compare gradients of parameters, with and without curvature?

Question: do the gradients of a query and of the documents that taught its answer point the same
way: as they are, along the training run, whitened, or times an inverse curvature?

Command:   uv run experiments/gradient_baseline.py --method ekfac --dataset D.jsonl --new NEW \\
               --output results/ekfac.jsonl
           --method is one of gradient_cosine, tracin, trackstar, datainf, kfac, ekfac, kronfluence,
           bergson; --method NAME --help shows its flags; the last two need the dependency group
           peers (uv sync --group peers)
Result:    the documents, best first, with metrics, arguments and timing beside them; what the
           fields mean and what came out is in attribution.md
"""

from utils.attribution_methods import METHODS
from utils.method_script import run_chosen_method

BASELINES = (
    "gradient_cosine", "tracin", "trackstar", "datainf", "kfac", "ekfac", "kronfluence", "bergson",
)  # fmt: skip

if __name__ == "__main__":
    run_chosen_method({name: METHODS[name] for name in BASELINES}, "gradient_baseline.py", __doc__)
