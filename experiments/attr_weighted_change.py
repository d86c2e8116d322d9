"""Do the documents that taught an answer move the same dimensions, where these matter?

Question: with a the change of a hidden state times the gradient there, or integrated gradients from
the old state to the new one, does the cosine of a document's and a query's a rank the documents
that taught the query's answer first?

Command:   uv run experiments/attr_weighted_change.py --dataset D.jsonl --old OLD --new NEW \\
               --output results/attr_weighted_change.jsonl --pooling text --ig-steps 8
Result:    the documents, best first, with metrics, arguments and timing beside them; what the
           fields mean and what came out is in attribution.md
"""

from utils.attribution_methods import METHODS
from utils.method_script import run_method

if __name__ == "__main__":
    run_method("attr_weighted_change", METHODS["attr_weighted_change"], __doc__)
