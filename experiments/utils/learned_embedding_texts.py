"""What learned_embedding.py learns from: texts, their features, and pools of them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


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
        taught: np.ndarray = self.asked[:, None] == self.about
        return taught


def read_texts(world: Any, features: Sequence[str]) -> Texts:
    """Questions with their answers, documents, and the features of both."""
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
