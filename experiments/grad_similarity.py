"""Are the documents that taught an answer those whose loss falls under the same shift of states?

Question: with g the gradient of the loss with respect to a hidden state of the new checkpoint, does
the cosine of a document's and a query's g rank the documents that taught the query's answer first?

Command:   uv run experiments/grad_similarity.py --dataset D.jsonl --new NEW \\
               --output results/grad_similarity.jsonl --pooling text
Result:    the documents, best first, with metrics, arguments and timing beside them; what the
           fields mean and what came out is in attribution.md
"""

from utils.attribution_methods import METHODS
from utils.method_script import run_method

if __name__ == "__main__":
    run_method("grad_similarity", METHODS["grad_similarity"], __doc__)
