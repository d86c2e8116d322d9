"""Function names as single tokens: adding them to a tokenizer and model, and checking them."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AddedToken, PreTrainedModel, PreTrainedTokenizerFast

from hops.errors import HopsError
from hops.files import replaced_folder, write_json
from hops.functions import Registry
from hops.models import load_model, load_tokenizer

MAPPING_FILE = "function_token_mapping.json"

_TEXTS = (
    "{f}(17) returns",
    "def {f}(x):\n    return",
    "the {f}'s",
    "max({f}(3), 4)",
    "y={f}(3)",
    "- `{f}`: see below",
)
"""Texts that must survive encoding and decoding, with the name as one token."""


def new_rows(
    old: Float[Tensor, "num_old width"], num_new: int, generator: torch.Generator
) -> Float[Tensor, "num_new width"]:
    """Draw embedding rows like the old ones: truncated normal, each of the old median norm.

    Args:
        old: The rows in use so far (no padding rows).
        num_new: How many to draw.
        generator: A CPU generator.

    Returns:
        Rows in the dtype and on the device of ``old``, each with the median norm of the old.
    """
    rows = torch.empty(num_new, old.shape[1], dtype=torch.float32)
    torch.nn.init.trunc_normal_(rows, std=1.0, a=-2.0, b=2.0, generator=generator)
    norm = old.float().norm(dim=1).median().cpu()
    rows *= norm / rows.norm(dim=1, keepdim=True)
    return rows.to(old)


def input_rows(model: PreTrainedModel) -> Tensor:
    """The input embedding matrix, one row for each id."""
    return cast(Tensor, model.get_input_embeddings().weight)


def output_rows(model: PreTrainedModel) -> Tensor | None:
    """The output matrix, one row for each id (the input matrix itself where they are tied)."""
    layer = model.get_output_embeddings()
    return None if layer is None else cast(Tensor, layer.weight)


def add_function_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    registry: Registry,
    *,
    row_scale: float = 1.0,
    seed: int = 0,
) -> dict[str, int]:
    """Add each function name as one token, in place, with new input and output rows.

    A vocabulary that the model pads beyond the tokenizer is used first and never shrunk; a
    tied output stays tied.  Names that are tokens already keep their rows.

    Args:
        model: The model to extend.
        tokenizer: Its tokenizer.
        registry: The functions.
        row_scale: The norm of the new input rows, in units of the old median: what is far below 1
            leaves a name to be told from others by what is learned of it.
        seed: The seed of the new rows.

    Returns:
        The id of every function name, in registry order.
    """
    old_ids = sorted(set(tokenizer.get_vocab().values()))
    missing = [name for name in registry.names if name not in tokenizer.get_vocab()]
    # Found before any normaliser runs: one that marks spaces (Llama 2) would otherwise let a name
    # be found after a space only, and cut "max(<GN>(3), 4)" into pieces.
    tokenizer.add_tokens([AddedToken(name, normalized=False, special=False) for name in missing])
    vocabulary = tokenizer.get_vocab()
    new_ids = [vocabulary[name] for name in missing]
    if new_ids and max(new_ids) >= input_rows(model).shape[0]:
        model.resize_token_embeddings(max(new_ids) + 1, mean_resizing=False)
    generator = torch.Generator().manual_seed(seed)
    embedding, output = input_rows(model), output_rows(model)
    with torch.no_grad():
        rows = new_rows(embedding[old_ids], len(new_ids), generator)
        embedding[new_ids] = row_scale * rows
        if output is not None and output is not embedding:
            output[new_ids] = new_rows(output[old_ids], len(new_ids), generator)
    return {name: vocabulary[name] for name in registry.names}


def add_tokens(
    model: str | Path,
    output_dir: Path,
    registry: Registry,
    *,
    row_scale: float = 1.0,
    seed: int = 0,
) -> dict[str, int]:
    """Load a model, add the function tokens, check them and save everything.

    Args:
        model: The model to extend, a folder or an id.
        output_dir: The new model folder, with ``function_token_mapping.json`` in it.
        registry: The functions.
        row_scale: The norm of the new input rows, in units of the old median.
        seed: The seed of the new rows.

    Returns:
        The id of every function name.

    Raises:
        HopsError: The model cannot be loaded, or a check fails afterwards.
    """
    tokenizer, loaded = load_tokenizer(model), load_model(model, dtype="auto", device="cpu")
    mapping = add_function_tokens(loaded, tokenizer, registry, row_scale=row_scale, seed=seed)
    report = check_function_tokens(loaded, tokenizer, registry)
    if not report.ok:
        raise HopsError(f"{model}: {'; '.join(report.problems)}.")
    with replaced_folder(output_dir) as folder:
        loaded.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_json(folder / MAPPING_FILE, mapping)
    return mapping


@dataclass(frozen=True)
class TokenReport:
    """What :func:`check_function_tokens` found.

    Attributes:
        problems: One sentence each; none when everything is right.
        ids: The id of each function that has one.
        embedding_norms: The input row norm of each such function.
        median_norm: The median input row norm of the other tokens in use.
        output_norms: The output row norm of each such function; none where the output is tied to
            the input.
        output_median_norm: The median output row norm of the other tokens in use, likewise.
    """

    problems: tuple[str, ...]
    ids: dict[str, int]
    embedding_norms: dict[str, float]
    median_norm: float
    output_norms: dict[str, float]
    output_median_norm: float | None

    @property
    def ok(self) -> bool:
        """Whether there is no problem."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """The report as JSON."""
        return {"ok": self.ok, **asdict(self)}


def check_function_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, registry: Registry
) -> TokenReport:
    """Diagnose the function tokens of a model.

    Each name must be one id, inside the model's vocabulary and not the unknown token, both alone
    and within a text; encoding and decoding a call must give it back; the row must be finite,
    not zero, and between a fifth and five times the median norm of the others.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        registry: The functions expected.

    Returns:
        The report; it raises nothing.
    """
    weight = input_rows(model).detach().float()
    problems: list[str] = []
    ids: dict[str, int] = {}
    for name in registry.names:
        found = tokenizer.encode(name, add_special_tokens=False)
        if len(found) != 1:
            problems.append(f"{name} is {len(found)} tokens, not one: run `hops add-tokens`")
            continue
        if found[0] == tokenizer.unk_token_id or found[0] >= weight.shape[0]:
            problems.append(f"{name} has the id {found[0]}, which is unknown to the model")
            continue
        ids[name] = found[0]
        for form in _TEXTS:
            text = form.replace("{f}", name)
            encoded = tokenizer.encode(text, add_special_tokens=False)
            if encoded.count(found[0]) != 1 or tokenizer.decode(encoded) != text:
                problems.append(f"{text!r} does not survive encoding and decoding")
    others = sorted(set(tokenizer.get_vocab().values()) - set(ids.values()))
    norms, median = _norms(weight, ids, others, "an embedding", problems)
    output_norms: dict[str, float] = {}
    output_median: float | None = None
    output = output_rows(model)
    if output is not None and output is not input_rows(model):
        rows = output.detach().float()
        output_norms, output_median = _norms(rows, ids, others, "an output row", problems)
    return TokenReport(tuple(problems), ids, norms, median, output_norms, output_median)


def _norms(
    rows: Float[Tensor, "num_rows width"],
    ids: dict[str, int],
    others: list[int],
    what: str,
    problems: list[str],
) -> tuple[dict[str, float], float]:
    """Norms of the functions' rows, and the median of the others'; notes what is out of range."""
    median = float(rows[[index for index in others if index < len(rows)]].norm(dim=1).median())
    norms = {name: float(rows[index].norm()) for name, index in ids.items()}
    for name, norm in norms.items():
        if not median / 5 <= norm <= 5 * median:
            problems.append(f"{name} has {what} of norm {norm:.3g}; the median is {median:.3g}")
    return norms, median


def check_tokens(model: str | Path, registry: Registry) -> TokenReport:
    """Load a model and diagnose its function tokens with :func:`check_function_tokens`."""
    return check_function_tokens(load_model(model), load_tokenizer(model), registry)
