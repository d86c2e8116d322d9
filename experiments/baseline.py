"""How far do methods come that know nothing of training?

Question: do the words of a query, its letters, or the new model's states find the documents that
taught the query's answer? What attribution finds beyond these is its own.

Command:   uv run experiments/baseline.py --method bm25 --dataset D.jsonl \\
               --output results/bm25.jsonl
           uv run experiments/baseline.py --method representation_similarity --layer middle \\
               --dataset D.jsonl --new NEW --output results/representation_similarity.jsonl
           --method is one of bm25, tfidf, edit_distance, random, representation_similarity;
           --method NAME --help shows its flags
Result:    the documents, best first, with metrics, arguments and timing beside them; what the
           fields mean and what came out is in attribution.md
"""

from utils.attribution_methods import METHODS
from utils.method_script import run_chosen_method

BASELINES = ("bm25", "tfidf", "edit_distance", "random", "representation_similarity")

if __name__ == "__main__":
    run_chosen_method({name: METHODS[name] for name in BASELINES}, "baseline.py", __doc__)
