"""Do the dimensions that a document moved most carry the change of an answer?

Question: with these dimensions taken from the new checkpoint into the old one as it reads a query,
how much of the change of the answer's margin comes about, and does that share rank the documents
that taught the answer first?

Command:   uv run experiments/causal_patching.py --dataset D.jsonl --old OLD --new NEW \\
               --output results/causal_patching.jsonl
           the same again with --resume after a kill: every query that is finished is kept
Result:    the documents, best first, with metrics, arguments and timing beside them; what the
           fields mean and what came out is in attribution.md
"""

from utils.attribution_methods import METHODS
from utils.method_script import run_method

if __name__ == "__main__":
    run_method("causal_patching", METHODS["causal_patching"], __doc__)
