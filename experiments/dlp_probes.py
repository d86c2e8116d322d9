"""Can trained probes into the new checkpoint tell which documents taught an answer?

Question: deep linear probes (arXiv 2410.10811) are trained to match queries and documents of some
functions by what the frozen model answers to the probes. Do they match those of functions that
training never saw, better than chance and than untrained probes?

Command:   uv run experiments/dlp_probes.py --dataset D.jsonl --old OLD --new NEW \\
               --output results/dlp_probes.jsonl
Result:    the documents, best first, with metrics, arguments and timing beside them; every query
           is scored by probes that never saw its function; what the fields mean and what came out
           is in attribution.md
"""

from utils.attribution_methods import METHODS
from utils.method_script import run_method

if __name__ == "__main__":
    run_method("dlp_probes", METHODS["dlp_probes"], __doc__)
