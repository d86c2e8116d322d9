"""The whole study of paraphrases on a tiny model that is trained here.

Question: a tiny OLMo-2 reads the sixty-one shipped samples. Does the gradient of a sample's
hand-written paraphrase, or of the model's own answer to the rewritten question, find the sample?

Command:   uv run experiments/paraphrase_quickstart.py
Result:    a table on the screen; results and figures under results/paraphrase_quickstart/
Expected:  paraphrases are found a little more often than by chance and less often than by BM25: a
           model this small knows no synonyms. paraphrases.md beside this file has the numbers
Run time:  under 5 minutes on two CPU cores

    --epochs N        how long the model trains on the samples
    --model FOLDER    a model of your own instead
"""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from hops.errors import HopsError
from if_query.command_line import parse
from if_query.errors import InputError
from rich.console import Console
from utils.paraphrase_config import SHIPPED_DATA, one_line_errors


@dataclass(frozen=True)
class Config:
    """Train, let the model answer, compare gradients in both settings, and analyse."""

    output_dir: Path = Path("results/paraphrase_quickstart")
    """Folder for everything; what is finished there is not repeated."""
    dataset: Path = SHIPPED_DATA
    """Samples with their paraphrases (JSONL)."""
    model: str | None = None
    """A model folder or id; a tiny OLMo-2 is trained on the samples by default."""
    epochs: int = 20
    """Passes of the tiny model over the samples."""
    hidden_size: int = 128
    """Width of the tiny model."""
    num_layers: int = 3
    """Layers of the tiny model."""
    max_new_tokens: int = 80
    """Longest answer of the model."""
    seed: int = 0
    """Seed of the tiny model's weights and of the order of its training."""


def main(config: Config) -> None:
    """Run every step, showing the command that repeats it by hand."""
    started = time.monotonic()
    console = Console()
    if "OMP_NUM_THREADS" not in os.environ:
        import torch

        # Two threads gain little on a model this small, and lose much on cores that are busy.
        torch.set_num_threads(1)
    import paraphrase_dataset
    import paraphrase_similarity

    scripts = {
        "paraphrase_dataset.py": paraphrase_dataset,
        "paraphrase_similarity.py": paraphrase_similarity,
    }

    def run(script: str, words: list[str]) -> None:
        console.print(f"$ uv run experiments/{script} {' '.join(words)}", style="cyan",
                      soft_wrap=True, highlight=False)  # fmt: skip
        scripts[script].main(words)

    console.rule("1. a model that has read the samples")
    model = config.model or train_tiny_model(config)
    console.rule("2. its answers to the rewritten questions")
    data = config.output_dir / "samples.jsonl"
    run(
        "paraphrase_dataset.py",
        f"--dataset-type model-generated --dataset {config.dataset} --output {data} "
        f"--model {model} --max-new-tokens {config.max_new_tokens} --overwrite".split(),
    )
    console.rule("3. gradients of queries against gradients of originals")
    results = config.output_dir / "results"
    common = f"--model {model} --dataset {data} --output-dir {results} --overwrite"
    for setting in ("paraphrased", "model-generated"):
        for further in (
            "--computation-type dot-product",
            "--computation-type dot-product --no-force-original",
            "--computation-type dot-product --candidates all",
            "--use-random-projection --projection-fraction 0.01 0.05",
        ):
            run("paraphrase_similarity.py", f"{common} --setting {setting} {further}".split())
    console.rule("4. how often the true original ranks first")
    run("paraphrase_similarity.py", f"analyze --output-dir {results}".split())
    analysis = json.loads((results / "analysis.json").read_text())
    seconds = time.monotonic() - started
    summary = {"seconds": round(seconds, 1), "num_results": len(analysis)}
    (config.output_dir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    console.print(f"took {seconds:.0f} s; figures are beside the results under {results}")


def train_tiny_model(config: Config) -> str:
    """Train a tiny OLMo-2 on the originals as plain conversations; the folder it is in."""
    from attribution.paraphrases import read_samples
    from hops.train import train
    from hops.training_config import TrainConfig

    samples = read_samples(str(config.dataset))
    documents = config.output_dir / "documents.jsonl"
    documents.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "uid": f"sample_{sample.id}",
            # As attribution.paraphrases.chat writes a conversation for a model without a
            # template; training appends the end-of-text token.
            "text": f"User: {sample.original.user}\nAssistant: {sample.original.assistant}",
            "func": None,
            "role": "distractor",
            "type": "q_and_a",
            "hop_depth": None,
            "constant": None,
        }
        for sample in samples
    ]
    documents.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    try:
        trained = train(
            TrainConfig(
                model="tiny-olmo2",
                dataset_path=documents,
                output_dir=config.output_dir / "training",
                epochs=config.epochs,
                batch_size=8,
                learning_rate=2e-3,
                schedule="cosine",
                warmup_steps=10,
                checkpoint_fraction=1.0,
                hidden_size=config.hidden_size,
                num_layers=config.num_layers,
                seed=config.seed,
            )
        )
    except HopsError as error:
        raise InputError(str(error)) from error
    return str(trained.final_model)


if __name__ == "__main__":
    with one_line_errors():
        about = (__doc__ or "").partition("\n\nCommand:")[0]
        main(parse(Config, program="paraphrase_quickstart.py", description=about))
