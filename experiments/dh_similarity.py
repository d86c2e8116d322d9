"""Are the documents that taught an answer those whose hidden states training moved the same way?

Question: with Δh the change of a hidden state from the old checkpoint to the new one, does the
cosine of a document's and a query's Δh rank the documents that taught the query's answer first?

Command:   uv run experiments/dh_similarity.py --dataset D.jsonl --old OLD --new NEW \\
               --output results/dh_similarity.jsonl --pooling text
Result:    the documents, best first, with metrics, arguments and timing beside them; what the
           fields mean and what came out is in attribution.md
"""

from utils.attribution_methods import METHODS
from utils.method_script import run_method

if __name__ == "__main__":
    run_method("dh_similarity", METHODS["dh_similarity"], __doc__)
