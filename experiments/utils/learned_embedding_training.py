"""The ways in which learned_embedding.py learns a projection, and how it is scored."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from attribution.evaluation import average_precision, precision_at_k, roc_auc
from math_utils.contrastive import (
    CurriculumParams,
    CurriculumScheduler,
    HardNegativeMiner,
    InfoNCELoss,
    TemperatureAnnealing,
)
from torch import Tensor
from torch.nn.functional import normalize
from utils.learned_embedding_texts import Examples, Texts, select, split, whitened

NUM_NEGATIVES = 32
TEMPERATURE = 0.1
START_TEMPERATURE = 0.5


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


def study(
    texts: Texts,
    feature: str,
    seed: int,
    *,
    held_out: float,
    learning_rates: Sequence[float],
    steps: int,
) -> Iterator[dict[str, Any]]:
    """One row for each method on one split of the functions.

    Args:
        texts: all questions and documents.
        feature: which of their features is projected.
        seed: of the split and of the trainings.
        held_out: the share of functions that is held out.
        learning_rates: each recipe takes the best of them on validation functions.
        steps: of each training.
    """
    fit, validation, training, tested = split(texts, held_out, seed)
    # Whitening is that of the pool that is learned on, for validation too.
    pairs = ((fit, validation), (training, tested))
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
            return score(choice[1], train(recipe, choice[0], rate, steps=steps, seed=seed))["map"]

        rate = max(learning_rates, key=validated)
        projection = train(recipe, result[0], rate, steps=steps, seed=seed)
        found = score(result[1], projection)
        yield {**base, "method": recipe.name, "start": start, "learning_rate": rate, **found}


def train(
    recipe: Recipe, examples: Examples, learning_rate: float, *, steps: int, seed: int
) -> torch.nn.Linear:
    """A projection, from the identity, trained by one recipe.

    Every step takes one question about each function as anchor and one of its documents as
    positive, so that the positives of the others are true negatives.
    """
    generator = torch.Generator().manual_seed(seed)
    width = examples.documents.shape[1]
    projection: torch.nn.Linear = torch.nn.utils.skip_init(
        torch.nn.Linear, width, width, bias=False
    )
    torch.nn.init.eye_(projection.weight)
    optimizer = torch.optim.AdamW(projection.parameters(), lr=learning_rate, weight_decay=0.0)
    functions = np.unique(examples.asked)
    samples = max(1, steps // 4) * len(functions)
    if recipe.curriculum:
        # The easiest negatives are random ones; weighted draws sharpen towards the hardest.
        curriculum = CurriculumScheduler.linear(4, samples, 4, NUM_NEGATIVES, 1.0, TEMPERATURE)
    else:
        only = CurriculumParams(NUM_NEGATIVES, TEMPERATURE, difficulty=1.0)
        curriculum = CurriculumScheduler([only], samples)
    start = START_TEMPERATURE if recipe.annealing else TEMPERATURE
    annealing = TemperatureAnnealing(start, TEMPERATURE, steps, "cosine")
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
        projected: torch.Tensor = projection(getattr(examples, side)[torch.cat(places)])
        return projected

    for _ in range(steps):
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
