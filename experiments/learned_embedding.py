"""Does a learned projection of features find the documents that taught an answer to new questions?

Question: a linear projection of per-example features is trained with InfoNCE on questions and
documents about some functions of a HOPS world. Does the cosine of projected features rank the
documents about *other* functions better than the features themselves do? What do mined negatives,
the curriculum and the annealed temperature add?

Features of a text, from the checkpoints before and after the documents were learned: `state`, the
mean over positions of the new one's hidden states in the middle; `change`, these minus the old
one's; where `--features` asks for it, `gradient`, that of the new one's loss by its MLPs,
randomly projected.

Each seed splits the functions. The documents ranked are those about the held-out functions and
their wrappers, and distractors that training did not see; those about the function asked are
relevant. A projection starts from the identity, on the features or on whitened ones (by the
training documents), whichever is better unlearned on validation functions, a quarter of the
training ones. Each method chooses its learning rate by mAP on these and is then trained on all
training functions; held-out functions choose nothing.

Command:   uv run experiments/learned_embedding.py
Result:    tables on the screen, rows.csv, metrics.json and learned_embedding.png in
           results/learned_embedding/; the numbers are in packages/math-utils/README.md
Run time:  6 minutes on a CPU core that other work shares, after 2 for the world, once

    --smoke                                         seconds, numbers that mean nothing
    --output-dir DIR  --seeds N  --functions N  --features state change gradient
"""

import csv
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from hops.errors import HopsError
from if_query.errors import InputError, command_errors
from rich.console import Console
from rich.table import Table
from torch import Tensor

Feature = Literal["state", "change", "gradient"]
METRICS = {"precision@10": "P@10", "map": "mAP", "roc_auc": "AUC"}
NUM_NEGATIVES = 32
TEMPERATURE = 0.1
START_TEMPERATURE = 0.5


@dataclass(frozen=True)
class Config:
    """One world, several splits of its functions, several ways to learn."""

    output_dir: Path = Path("results/learned_embedding")
    """Folder for everything; a world that is there is not built again."""
    functions: int = 40
    """Base functions of the world, each with a wrapper; 10 to 99."""
    seeds: int = 5
    """Splits of the functions into training and held-out ones; at least 2, for intervals."""
    held_out: float = 0.4
    """The share of functions that is held out."""
    features: tuple[Feature, ...] = ("state", "change")
    """What is projected."""
    steps: int = 100
    """Optimizer steps of each training; one anchor per training function in each."""
    learning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    """Of AdamW; each method chooses one on validation functions."""
    smoke: bool = False
    """Ten functions, hardly trained, and two seeds: shows that everything runs."""


@dataclass(frozen=True)
class Recipe:
    """One way to learn: where negatives come from, and what changes while training."""

    name: str
    mining: Literal["hardest", "semi_hard", "distance_weighted", "random"] | None
    curriculum: bool = True
    annealing: bool = True


RECIPES = (
    Recipe("all: weighted draws", "distance_weighted"),
    Recipe("mining: hardest", "hardest"),
    Recipe("mining: semi-hard", "semi_hard"),
    Recipe("mining: random", "random"),
    # Without mining, the negatives of an anchor are the positives of the others in the batch,
    # and a curriculum has nothing to choose.
    Recipe("mining: none (in-batch)", None, curriculum=False),
    Recipe("no curriculum", "distance_weighted", curriculum=False),
    Recipe("no annealing", "distance_weighted", annealing=False),
    Recipe("InfoNCE alone", None, curriculum=False, annealing=False),
)
UNLEARNED = ("features", "features, whitened", "whitened, sides centred apart")


@dataclass(frozen=True)
class Texts:
    """What questions and documents are about, and their features."""

    query_functions: np.ndarray
    document_functions: np.ndarray
    document_bases: np.ndarray
    queries: dict[str, Tensor]
    documents: dict[str, Tensor]


@dataclass(frozen=True)
class Pool:
    """The questions about some functions, and the documents to find answers in."""

    queries: np.ndarray
    documents: np.ndarray


@dataclass(frozen=True)
class Examples:
    """Features of a pool, with the functions they are about."""

    queries: Tensor
    documents: Tensor
    asked: np.ndarray
    about: np.ndarray

    @property
    def relevance(self) -> np.ndarray:
        """True where the document is about the function asked [query, document]."""
        return self.asked[:, None] == self.about


def main(config: Config) -> None:
    """Build the world, learn and score every method on every split; print, write and draw."""
    check(config)
    if config.smoke:
        config = Config(config.output_dir, 10, 2, config.held_out, config.features, 5, (1e-3,))
        world_sizes = {"num_old_distractors": 40, "old_epochs": 1.0, "new_epochs": 0.2}
        world_sizes |= {"num_new_distractors": 20, "hidden_size": 32}
    else:
        world_sizes = {"num_old_distractors": 2000, "old_epochs": 2.0, "new_epochs": 5.0}
        world_sizes |= {"num_new_distractors": 150}
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    from hops.presets import Preset
    from hops.world import build_world
    from tqdm import tqdm

    counts = {"variations": 2, "wrapper_variations": 1, "comprehensive_docs": 6, "code_snippets": 8}
    preset = Preset(num_functions=config.functions, **counts, **world_sizes)  # type: ignore[arg-type]
    world = build_world(config.output_dir / "world", preset=preset)
    console = Console()
    accuracy = {name: depths[0] for name, depths in world.accuracy.items()}
    console.print(
        f"accuracy on base functions: old checkpoint {accuracy['old']:.2f}, "
        f"new {accuracy['new']:.2f} (chance {world.chance:.2f})"
    )
    texts = read_texts(world, config.features)
    rows = []
    jobs = [(seed, feature) for seed in range(config.seeds) for feature in config.features]
    for seed, feature in tqdm(jobs, desc="splits and features"):
        rows += study(config, texts, feature, seed)
    for feature in config.features:
        console.print(result_table(rows, feature, config.seeds))
    write(config, rows, accuracy)
    console.print(f"all files are under {config.output_dir}")


def check(config: Config) -> None:
    """Refuse sizes that leave no split or no interval."""
    if not 10 <= config.functions <= 99:
        raise InputError(f"--functions: expected 10 to 99, got {config.functions}")
    if config.seeds < 2:
        raise InputError(f"--seeds: expected at least 2, for intervals, got {config.seeds}")
    if not 0.1 <= config.held_out <= 0.6:
        raise InputError(f"--held-out: expected a share from 0.1 to 0.6, got {config.held_out}")
    if config.steps < 1:
        raise InputError(f"--steps: expected at least 1, got {config.steps}")
    if not config.features:
        raise InputError("--features: expected at least one, got none")
    if not config.learning_rates or any(not 0 < rate < 1 for rate in config.learning_rates):
        raise InputError(
            f"--learning-rates: expected rates between 0 and 1, got {config.learning_rates}"
        )


def read_texts(world: Any, features: Sequence[str]) -> Texts:
    """Questions with their answers, documents, and the features of both."""
    import json

    from attribution.activations import pooled_hidden_states
    from if_query.encoding import encode_pair
    from if_query.models import load_model, load_tokenizer

    documents, queries = (
        json.loads(path.read_text()) for path in (world.train_json, world.query_json)
    )
    new = load_model(str(world.new_model), dtype="float32")
    old = load_model(str(world.old_model), dtype="float32")
    tokenizer = load_tokenizer(str(world.new_model))
    sides = {
        "queries": [
            encode_pair(tokenizer, one["prompt"], one["completion"], 512, eos=False)
            for one in queries
        ],
        "documents": [
            encode_pair(tokenizer, one["prompt"], one["completion"], 512) for one in documents
        ],
    }
    found: dict[str, dict[str, Tensor]] = {}
    for side, examples in sides.items():
        ids = [list(one.input_ids) for one in examples]
        own = found[side] = {}
        for name, model in (("state", new), ("old state", old)):
            own[name] = pooled_hidden_states(
                model, ids, layer="middle", pooling="mean", batch_size=32
            )
        own["change"] = own["state"] - own.pop("old state")
        if "gradient" in features:
            own["gradient"] = projected_gradients(new, examples)
    return Texts(
        query_functions=np.array([one["func"] for one in queries]),
        document_functions=np.array([one["func"] or "" for one in documents]),
        document_bases=np.array([one["base_func"] or "" for one in documents]),
        **found,
    )


def projected_gradients(model: Any, examples: Sequence[Any]) -> Tensor:
    """Gradients of each example's loss at the MLPs, projected to 256 dimensions."""
    from math_utils.influence import DiscriminativeGradientExtractor, InfluenceConfig
    from torch.nn.utils.rnn import pad_sequence

    def padded(rows: list[list[int]], filler: int) -> Tensor:
        tensors = [torch.tensor(row) for row in rows]
        return pad_sequence(tensors, batch_first=True, padding_value=filler)

    loader = []
    for start in range(0, len(examples), 16):
        batch = examples[start : start + 16]
        ids = [list(one.input_ids) for one in batch]
        loader.append(
            {
                "input_ids": padded(ids, 0),
                "attention_mask": padded([[1] * len(row) for row in ids], 0),
                "labels": padded([list(one.labels) for one in batch], -100),
            }
        )
    extractor = DiscriminativeGradientExtractor(
        model, InfluenceConfig(target="mlp"), projection_dim=256
    )
    return extractor.compute_embeddings(loader).float()


def study(config: Config, texts: Texts, feature: str, seed: int) -> Iterator[dict[str, Any]]:
    """One row for each method on one split."""
    fit, validation, training, held_out = split(texts, config.held_out, seed)
    # Whitening is that of the pool that is learned on, for validation too.
    pairs = ((fit, validation), (training, held_out))
    raw = [[select(texts, feature, pool) for pool in pools] for pools in pairs]
    white = [whitened(texts, feature, pools[0], pools) for pools in pairs]
    learned_on, scored_on = white[1]
    apart = Examples(
        scored_on.queries - learned_on.queries.mean(dim=0),
        scored_on.documents,
        scored_on.asked,
        scored_on.about,
    )
    base = {"feature": feature, "seed": seed}
    for name, examples in zip(UNLEARNED, (raw[1][1], scored_on, apart), strict=True):
        yield {**base, "method": name, "start": "", "learning_rate": "", **score(examples)}
    start = "whitened" if score(white[0][1])["map"] > score(raw[0][1])["map"] else "features"
    choice, result = white if start == "whitened" else raw
    for recipe in RECIPES:

        def validated(rate: float, recipe: Recipe = recipe) -> float:
            return score(choice[1], train(config, recipe, choice[0], rate, seed))["map"]

        rate = max(config.learning_rates, key=validated)
        projection = train(config, recipe, result[0], rate, seed)
        found = score(result[1], projection)
        yield {**base, "method": recipe.name, "start": start, "learning_rate": rate, **found}


def split(texts: Texts, held_out: float, seed: int) -> tuple[Pool, Pool, Pool, Pool]:
    """Pools to fit on, to validate on (both of training functions), of training, and held out."""
    generator = np.random.default_rng(seed)
    functions = generator.permutation(np.unique(texts.query_functions))
    distractors = generator.permutation(np.flatnonzero(texts.document_bases == ""))

    def pool(first: float, last: float) -> Pool:
        some = functions[round(first * len(functions)) : round(last * len(functions))]
        own = np.flatnonzero(np.isin(texts.document_bases, some))
        others = distractors[round(first * len(distractors)) : round(last * len(distractors))]
        asked = np.flatnonzero(np.isin(texts.query_functions, some))
        return Pool(asked, np.concatenate([own, others]))

    border, inner = 1 - held_out, 0.75 * (1 - held_out)
    return pool(0, inner), pool(inner, border), pool(0, border), pool(border, 1)


def select(texts: Texts, feature: str, pool: Pool) -> Examples:
    """The features of a pool as they are."""
    return Examples(
        texts.queries[feature][pool.queries],
        texts.documents[feature][pool.documents],
        texts.query_functions[pool.queries],
        texts.document_functions[pool.documents],
    )


def whitened(texts: Texts, feature: str, source: Pool, pools: Sequence[Pool]) -> list[Examples]:
    """Features with the mean 0 and covariance I of the source's documents, a little shrunk."""
    documents = select(texts, feature, source).documents.double()
    mean, covariance = documents.mean(dim=0), torch.cov(documents.T)
    shrinkage = 0.01 * covariance.diagonal().mean()
    values, vectors = torch.linalg.eigh(covariance + shrinkage * torch.eye(len(covariance)))
    whitening = vectors * values.rsqrt()
    found = []
    for pool in pools:
        one = select(texts, feature, pool)
        queries, rows = (
            ((side.double() - mean) @ whitening).float() for side in (one.queries, one.documents)
        )
        found.append(Examples(queries, rows, one.asked, one.about))
    return found


def train(
    config: Config, recipe: Recipe, examples: Examples, learning_rate: float, seed: int
) -> torch.nn.Linear:
    """A projection, from the identity, trained by one recipe.

    Every step takes one question about each function as anchor and one of its documents as
    positive, so that the positives of the others are true negatives.
    """
    from math_utils.contrastive import (
        CurriculumParams,
        CurriculumScheduler,
        HardNegativeMiner,
        InfoNCELoss,
        TemperatureAnnealing,
    )

    generator = torch.Generator().manual_seed(seed)
    width = examples.documents.shape[1]
    projection = torch.nn.utils.skip_init(torch.nn.Linear, width, width, bias=False)
    torch.nn.init.eye_(projection.weight)
    optimizer = torch.optim.AdamW(projection.parameters(), lr=learning_rate, weight_decay=0.0)
    functions = np.unique(examples.asked)
    samples = max(1, config.steps // 4) * len(functions)
    if recipe.curriculum:
        # The easiest negatives are random ones; weighted draws sharpen towards the hardest.
        curriculum = CurriculumScheduler.linear(4, samples, 4, NUM_NEGATIVES, 1.0, TEMPERATURE)
    else:
        only = CurriculumParams(NUM_NEGATIVES, TEMPERATURE, difficulty=1.0)
        curriculum = CurriculumScheduler([only], samples)
    start = START_TEMPERATURE if recipe.annealing else TEMPERATURE
    annealing = TemperatureAnnealing(start, TEMPERATURE, config.steps, "cosine")
    miner = recipe.mining and HardNegativeMiner(recipe.mining, generator=generator)
    easy = HardNegativeMiner("random", generator=generator)
    loss = InfoNCELoss()
    other = torch.tensor(functions[:, None] != examples.about)
    rows = {
        side: [torch.tensor(np.flatnonzero(about == function)) for function in functions]
        for side, about in (("queries", examples.asked), ("documents", examples.about))
    }

    def one_each(side: str) -> Tensor:
        places = [own[torch.randint(len(own), (1,), generator=generator)] for own in rows[side]]
        return projection(getattr(examples, side)[torch.cat(places)])

    for _ in range(config.steps):
        anchors, positives = one_each("queries"), one_each("documents")
        negatives = None
        if miner:
            stage = curriculum.current_params()
            num_hard = max(1, round(stage.difficulty * stage.k_neighbors))
            miner.temperature = stage.temperature
            with torch.no_grad():
                candidates = projection(examples.documents)
            mined = miner.mine(anchors, candidates, num_hard, positives, allowed=other)
            if num_hard < stage.k_neighbors:
                rest = other.scatter(1, mined, False)
                num_easy = stage.k_neighbors - num_hard
                random = easy.mine(anchors, candidates, num_easy, allowed=rest)
                mined = torch.cat([mined, random], dim=1)
            negatives = projection(examples.documents[mined])
        loss.temperature = annealing.temperature
        optimizer.zero_grad()
        loss(anchors, positives, negatives).backward()
        optimizer.step()
        curriculum.step(len(functions))
        annealing.step()
    return projection


def score(examples: Examples, projection: torch.nn.Linear | None = None) -> dict[str, float]:
    """Retrieval metrics of the cosines, means over questions."""
    from attribution.evaluation import average_precision, precision_at_k, roc_auc
    from torch.nn.functional import normalize

    with torch.no_grad():
        queries, documents = (
            normalize(side if projection is None else projection(side), dim=1)
            for side in (examples.queries, examples.documents)
        )
    scores, relevance = (queries @ documents.T).numpy(), examples.relevance
    return {
        "precision@10": float(precision_at_k(scores, relevance, 10).mean()),
        "map": float(average_precision(scores, relevance).mean()),
        "roc_auc": float(roc_auc(scores, relevance).mean()),
    }


def values_of(rows: list[dict[str, Any]], feature: str, method: str, metric: str) -> np.ndarray:
    """One number per seed."""
    own = [row for row in rows if (row["feature"], row["method"]) == (feature, method)]
    return np.array([row[metric] for row in sorted(own, key=lambda row: row["seed"])])


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """The mean over seeds and its 95 % t-interval."""
    from scipy.stats import t

    mean = float(values.mean())
    half = float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5)
    return mean, mean - half, mean + half


def summary(rows: list[dict[str, Any]], feature: str) -> dict[str, dict[str, Any]]:
    """Means with intervals for each method, and the difference of mAP from the first recipe's."""
    reference = values_of(rows, feature, RECIPES[0].name, "map")
    found: dict[str, dict[str, Any]] = {}
    for method in (*UNLEARNED, *(recipe.name for recipe in RECIPES)):
        found[method] = {
            metric: interval(values_of(rows, feature, method, metric)) for metric in METRICS
        }
        found[method]["map_minus_all"] = interval(
            values_of(rows, feature, method, "map") - reference
        )
    return found


def result_table(rows: list[dict[str, Any]], feature: str, num_seeds: int) -> Table:
    """One row per method."""
    table = Table(title=f"{feature}: held-out functions, mean over {num_seeds} splits ± 95 %")
    table.add_column("method", no_wrap=True)
    for title in (*METRICS.values(), "mAP − all"):
        table.add_column(title, justify="right", no_wrap=True)
    for method, result in summary(rows, feature).items():
        cells = [f"{result[metric][0]:.2f}" for metric in METRICS]
        mean, low, high = result["map"]
        cells[1] += f" ± {(high - low) / 2:.2f}"
        mean, low, high = result["map_minus_all"]
        differs = method != RECIPES[0].name
        cells.append(f"{mean:+.3f} ± {(high - low) / 2:.3f}" if differs else "")
        table.add_row(method, *cells)
    return table


def write(config: Config, rows: list[dict[str, Any]], accuracy: dict[str, float]) -> None:
    """The rows, their summary and the figure."""
    from if_query.whole_files import replacing, write_json

    with (
        replacing(config.output_dir / "rows.csv") as temporary,
        temporary.open("w", newline="") as file,
    ):
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    settings = {**asdict(config), "output_dir": str(config.output_dir)}
    summaries = {feature: summary(rows, feature) for feature in config.features}
    write_json(
        config.output_dir / "metrics.json",
        {"config": settings, "accuracy": accuracy, "mean_low_high": summaries},
    )
    with replacing(config.output_dir / "learned_embedding.png") as temporary:
        draw(temporary, config, rows)


def draw(path: Path, config: Config, rows: list[dict[str, Any]]) -> None:
    """MAP of every split, with means and intervals, one panel per feature."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    methods = [*UNLEARNED, *(recipe.name for recipe in RECIPES)]
    num = len(config.features)
    figure, axes = plt.subplots(
        1, num, figsize=(2.4 + 2.4 * num, 3.4), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, feature in zip(axes[0], config.features, strict=True):
        for place, method in enumerate(methods):
            color = "0.45" if method in UNLEARNED else "#5e3c99"
            values = values_of(rows, feature, method, "map")
            mean, low, high = interval(values)
            axis.plot(values, [place] * len(values), ".", color=color, alpha=0.35, markersize=5)
            error = [[mean - low], [high - mean]]
            axis.errorbar(mean, place, xerr=error, fmt="o", color=color, markersize=4, capsize=2)
        axis.set_title(feature, fontsize=9)
        axis.set_xlabel("mAP, held-out functions", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_yticks(range(len(methods)), methods)
    axes[0, 0].invert_yaxis()
    figure.savefig(path, dpi=110, format="png")
    plt.close(figure)


def as_input_errors(run: Callable[[], None]) -> None:
    """Report what is wrong with the arguments in one line."""
    with command_errors():
        try:
            run()
        except HopsError as error:
            raise InputError(str(error)) from error


if __name__ == "__main__":
    arguments = tyro.cli(Config, description=__doc__)
    as_input_errors(lambda: main(arguments))
