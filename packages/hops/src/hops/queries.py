"""Influence queries: training documents and questions as ``train.json`` and ``query.json``.

Both are JSON lists of ``pair_id``, ``prompt``, ``completion`` and further fields, as ``run-query``
reads them.  A training document has an empty prompt; a query has the evaluation's prompt and
the answer as completion.  Which documents taught a query's answer is said by :func:`taught`: for
a base function those that state its value; for a wrapper its own documents, those of the function
that it calls, and so on down to its base.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hops.documents import Document, told_wrappers
from hops.errors import HopsError
from hops.files import write_json
from hops.functions import HELD_OUT_INPUT, Registry
from hops.prompts import PROMPT_FORMAT, make_answer, make_prompt

QUERY_INPUTS = (HELD_OUT_INPUT, 17, 42)

Pair = dict[str, Any]


def taught(document: Document, *, taught_by: Collection[str], hop_depth: int) -> bool:
    """Whether a document taught the answer of a query.

    It is about a function of the query's chain.  Where the query asks for a base function it also
    states what that returns: a document that tells other things of the function teaches no value.
    For a wrapper such a document counts: from those about either name the model knows that wrapper
    and base go together.

    Args:
        document: The document.
        taught_by: The functions of the query's chain.
        hop_depth: The query's.
    """
    if document.role == "distractor" or document.func not in taught_by:
        return False
    return hop_depth > 0 or document.states_value


def training_pairs(documents: Sequence[Document], registry: Registry) -> list[Pair]:
    """One pair for each document, in order; ``line`` (from 0) is its place in the file.

    Args:
        documents: The training documents.
        registry: Supplies ``base_func`` where the file does not say it.

    Returns:
        The pairs, with ``func``, ``role``, ``type``, ``hop_depth``, ``constant``, ``answers``
        (``direct`` where a wrapper's value is stated), ``base_func``, ``uid`` and ``line``.
    """
    pairs = []
    for line, document in enumerate(documents):
        base = document.base_func
        if base is None and document.func is not None and document.func in registry:
            base = registry[document.func].base
        pairs.append(
            {
                "pair_id": f"document_{line:06d}",
                "prompt": "",
                "completion": document.text,
                "func": document.func,
                "base_func": base,
                "role": document.role,
                "type": document.type,
                "hop_depth": document.hop_depth,
                "constant": document.constant,
                "answers": document.answers,
                "uid": document.uid,
                "line": line,
            }
        )
    return pairs


def query_pairs(
    registry: Registry,
    *,
    inputs: Sequence[int] = QUERY_INPUTS,
    depths: Sequence[int] = (0,),
    without: Collection[str] = (),
    prompt_format: str = PROMPT_FORMAT,
) -> list[Pair]:
    """One query for each function and input.

    Args:
        registry: The functions.
        inputs: The inputs asked about.
        depths: The hop depths asked about.
        without: Functions not asked about.
        prompt_format: The prompt, see :data:`hops.prompts.PROMPT_FORMAT`.

    Returns:
        The queries, function by function, with ``func``, ``role``, ``type`` (``query``),
        ``hop_depth``, ``constant``, ``base_func``, ``taught_by`` (function names) and ``input``.

    Raises:
        HopsError: No query is left, or inputs repeat.
    """
    if len(set(inputs)) < len(inputs):
        raise HopsError(f"Query inputs must differ, got {list(inputs)}.")
    pairs = [
        {
            "pair_id": f"query_{function.name.strip('<>')}_{value}",
            "prompt": make_prompt(prompt_format, function, value),
            "completion": make_answer(function.constant),
            "func": function.name,
            "base_func": function.base,
            "role": function.role,
            "type": "query",
            "hop_depth": function.hop_depth,
            "constant": function.constant,
            "taught_by": [one.name for one in registry.chain(function.name)],
            "input": value,
        }
        for function in registry
        if function.hop_depth in depths and function.name not in without
        for value in inputs
    ]
    if not pairs:
        raise HopsError("No query to write: no inputs, or no function of these hop depths.")
    return pairs


@dataclass(frozen=True)
class QueryFiles:
    """The files written, and how many pairs are in each."""

    train_json: Path
    query_json: Path
    num_train: int
    num_queries: int


def write_queries(
    documents: Sequence[Document],
    registry: Registry,
    output_dir: Path,
    *,
    inputs: Sequence[int] = QUERY_INPUTS,
    depths: Sequence[int] = (0,),
    include_told: bool = False,
    prompt_format: str = PROMPT_FORMAT,
    model_path: str | Path | None = None,
    only_correct: bool = False,
) -> QueryFiles:
    """Write ``train.json`` and ``query.json``.

    Args:
        documents: The training documents.
        registry: The functions.
        output_dir: Where to write.
        inputs: The inputs asked about.
        depths: The hop depths asked about.
        include_told: Whether to ask about wrappers whose value the documents state, too.
        prompt_format: The prompt.
        model_path: The model that ``only_correct`` asks.
        only_correct: Keep the queries whose constant the model predicts.

    Returns:
        The files.

    Raises:
        HopsError: ``only_correct`` without a model, no query is left, or a bad argument.
    """
    queries = query_pairs(
        registry,
        inputs=inputs,
        depths=depths,
        without=() if include_told else told_wrappers(documents),
        prompt_format=prompt_format,
    )
    if only_correct:
        if model_path is None:
            raise HopsError("--only-correct needs the model to ask: pass --model-path.")
        queries = _correct(queries, registry, model_path, inputs, depths, prompt_format)
    train = training_pairs(documents, registry)
    files = QueryFiles(
        output_dir / "train.json", output_dir / "query.json", len(train), len(queries)
    )
    write_json(files.train_json, train)
    write_json(files.query_json, queries)
    return files


def _correct(
    queries: list[Pair],
    registry: Registry,
    model_path: str | Path,
    inputs: Sequence[int],
    depths: Sequence[int],
    prompt_format: str,
) -> list[Pair]:
    from hops.logit_eval import evaluate_model  # torch only where a model is asked

    evaluation = evaluate_model(
        model_path, registry, depths=depths, inputs=inputs, prompt_format=prompt_format
    )
    predicted = {
        (result.function.name, value): prediction
        for result in evaluation.functions
        for value, prediction in zip(evaluation.inputs, result.predictions, strict=True)
    }
    kept = [q for q in queries if predicted[q["func"], q["input"]] == q["constant"]]
    if not kept:
        raise HopsError(f"{model_path}: answers none of the {len(queries)} queries correctly.")
    return kept
