"""Hugging Face causal language models: loading them, choosing their maps, taking their loss."""

import hashlib
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from math_utils.causal_lm import head_restricted_to
from math_utils.errors import CurvatureError
from math_utils.head_loss import head_gives_logits, head_left_out, head_losses
from math_utils.language_modeling import (
    TokenBatch,
    draw_uniform,
    sample_labels,
    summed_cross_entropy,
)
from math_utils.linear_maps import MLP_PATTERN, LinearMap, find_linear_maps, share_of_parameters
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from if_query.errors import InputError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

_PATTERNS = {
    "mlp": MLP_PATTERN,
    "attention": r"(^|\.)(self_attn|attn|attention)\..*(proj|dense|c_attn|query_key_value)",
    "all": r"\.\d+\.",
}
_ROUTED = re.compile(r"(^|\.)experts(\.|$)")
_LAYER = re.compile(r"\.(\d+)\.")
_FINGERPRINT_ENTRIES = 1024


def load_model(
    name: str,
    *,
    revision: str | None = None,
    dtype: str = "bfloat16",
    device: str | None = None,
    device_map: str | None = None,
) -> Any:
    """Load a causal language model from a local folder or by its Hugging Face id.

    Args:
        name: folder or id.
        revision: branch, tag or commit, for an id.
        dtype: a key of ``DTYPES``.
        device: where to put it; CUDA where there is one, otherwise the CPU.
        device_map: spread over devices by accelerate, for example "auto"; excludes ``device``.

    Returns:
        The model, in evaluation mode.

    Raises:
        InputError: if there is no such model, or it cannot be loaded.
    """
    _check_folder(name)
    placement: dict[str, Any] = {"device_map": device_map} if device_map else {}
    with _loading(f"the model {name}"):
        model = AutoModelForCausalLM.from_pretrained(
            name,
            revision=revision or "main",
            dtype=DTYPES[dtype],
            trust_remote_code=False,
            **placement,
        )
    if not device_map:
        try:
            model = model.to(torch.device(device or default_device()))  # type: ignore[arg-type]
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"cannot use the device {device}: {_first_line(error)}") from error
    return model.eval()


def vocabulary_size(name: str, *, revision: str | None = None) -> int:
    """Rows of a model's embedding, read from its configuration before the model is loaded.

    Raises:
        InputError: if there is no such model.
    """
    _check_folder(name)
    with _loading(f"the model {name}"):
        config = AutoConfig.from_pretrained(
            name, revision=revision or "main", trust_remote_code=False
        )
    return int(config.get_text_config().vocab_size)


def load_tokenizer(name: str, *, revision: str | None = None) -> Any:
    """Load the tokenizer that stands beside a model.

    Raises:
        InputError: if there is none.
    """
    _check_folder(name)
    with _loading(f"the tokenizer of {name}"):
        return AutoTokenizer.from_pretrained(
            name, revision=revision or "main", trust_remote_code=False
        )


def default_device() -> str:
    """CUDA where there is one, otherwise the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def input_device(model: nn.Module) -> torch.device:
    """The device that a model's token ids belong on."""
    device: torch.device = model.get_input_embeddings().weight.device  # type: ignore[operator]
    return device


def fingerprint(model: nn.Module) -> str:
    """A digest of a model's parameters: their names, shapes, and some of their entries.

    Up to 1,024 evenly spaced entries of each parameter go into it, rounded to bfloat16, so that
    a model has one fingerprint whether it is loaded in float32 or bfloat16. (In float16 it may
    have another.)
    """
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        flat = parameter.detach().reshape(-1)
        stride = -(-flat.numel() // _FINGERPRINT_ENTRIES) or 1
        entries = flat[::stride].to(torch.bfloat16).cpu().contiguous().view(torch.int16)
        digest.update(f"{name}{list(parameter.shape)}".encode())
        digest.update(entries.numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Tracked:
    """The maps that a command tracks, and what of the model they leave out.

    Attributes:
        maps: by name, in the model's order.
        share: of all parameters, shared weights counted once.
        untracked_experts: parameters of routed experts that are not tracked.
        untracked_expert_share: their share of all parameters.
    """

    maps: dict[str, LinearMap]
    share: float
    untracked_experts: tuple[str, ...]
    untracked_expert_share: float

    def devices(self) -> dict[str, torch.device]:
        """The device of every map's weight."""
        return {name: next(one.modules[0].parameters()).device for name, one in self.maps.items()}

    def describe(self) -> list[str]:
        """Lines for a person: what is tracked, and what is not in spite of what one may expect."""
        lines = [f"tracking {len(self.maps)} linear maps: {self.share:.1%} of all parameters"]
        if self.untracked_experts:
            lines.append(
                f"warning: {self.untracked_expert_share:.1%} of all parameters are routed experts "
                f"and not tracked: {', '.join(self.untracked_experts[:3])}"
                + (", …" if len(self.untracked_experts) > 3 else "")
            )
        return lines


def select_maps(model: nn.Module, modules: str = "mlp", layer_stride: int = 1) -> Tracked:
    """Choose the linear maps of a model to track.

    Args:
        model: a causal language model.
        modules: "mlp", "attention", "all" (every linear map inside the decoder layers), or a
            regular expression that is searched for in module names.
        layer_stride: keep layers whose number is a multiple of it.

    Raises:
        InputError: if nothing is selected, or the expression is not one.
    """
    if layer_stride < 1:
        raise InputError(f"expected a layer stride of at least 1, got {layer_stride}")
    try:
        wanted = re.compile(_PATTERNS.get(modules, modules))
    except re.error as error:
        raise InputError(f"--modules {modules}: not a regular expression: {error}") from error

    def is_selected(name: str) -> bool:
        layer = _LAYER.search(name)
        in_stride = layer is None or int(layer.group(1)) % layer_stride == 0
        return bool(wanted.search(name)) and in_stride and not _ROUTED.search(name)

    tracked = track(model, is_selected)
    if not tracked.maps:
        found = [name for name, m in model.named_modules() if isinstance(m, nn.Linear)][:3]
        raise InputError(
            f"--modules {modules} selects no linear map of {type(model).__name__}"
            + (f" (it has, for example, {', '.join(found)})" if found else "")
            + "".join(f"; {line}" for line in tracked.describe()[1:])
        )
    return tracked


def track(model: nn.Module, select: Callable[[str], bool]) -> Tracked:
    """The linear maps whose name is selected, and what they leave out.

    Raises:
        InputError: if modules share a weight but not a bias.
    """
    try:
        maps = find_linear_maps(model, select)
    except CurvatureError as error:
        raise InputError(str(error)) from error
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    experts = tuple(name for name in sizes if _ROUTED.search(name))
    total = sum(sizes.values())
    return Tracked(
        maps=maps,
        share=share_of_parameters(maps.values(), model),
        untracked_experts=experts,
        untracked_expert_share=sum(sizes[name] for name in experts) / total,
    )


@dataclass(frozen=True)
class LanguageModelLoss:
    """Summed cross-entropy of every example, with the labels of the data or of the model.

    Attributes:
        labels: "given" takes the labels of the batch; "sampled" draws them from the model's own
            predictions at the labelled positions, which makes squared gradients of this loss the
            true Fisher information.
        seed: of sampled labels; each example draws by its own key.
        in_chunks: take logits, loss and their gradient some positions at a time; for a frozen
            model whose logits are what its head gives, as :meth:`for_model` finds out.
    """

    labels: Literal["given", "sampled"] = "given"
    seed: int = 0
    in_chunks: bool = False

    @classmethod
    def for_model(
        cls, model: nn.Module, labels: Literal["given", "sampled"] = "given", seed: int = 0
    ) -> "LanguageModelLoss":
        """With logits in chunks where that is the same; runs the model on one token."""
        head = model.get_output_embeddings()  # type: ignore[operator]
        return cls(labels, seed, head is not None and head_gives_logits(model, head))

    def __call__(self, model: nn.Module, batch: TokenBatch) -> Tensor:
        """The loss of every example [batch], in nats; 0 for an example without labels."""
        predicts = batch.label_positions()
        example_of_label = predicts.nonzero()[:, 0]
        targets = batch.labels[:, 1:][predicts[:, :-1]] if self.labels == "given" else None
        # Run also where nothing is labelled: inputs enter covariances whatever the batch.
        if self.in_chunks:
            head = model.get_output_embeddings()  # type: ignore[operator]
            with head_left_out(head, predicts) as kept:
                _run(model, batch)
            (hidden,) = kept
            uniform = None
            if targets is None:
                uniform = draw_uniform(example_of_label, batch.example_keys, seed=self.seed)
            return head_losses(
                head, hidden, example_of_label, len(predicts), targets=targets, uniform=uniform
            )
        logits = label_logits(model, batch)
        example_of_label = example_of_label.to(logits.device)
        if targets is None:
            targets = sample_labels(logits, example_of_label, batch.example_keys, seed=self.seed)
        return summed_cross_entropy(
            logits, targets.to(logits.device), example_of_label, len(predicts)
        )


def label_logits(model: nn.Module, batch: TokenBatch) -> Tensor:
    """Logits [label, vocab] at the positions that predict a label, and at no other.

    The output head gets only those positions, whatever the architecture does with its logits
    afterwards.

    Args:
        model: a Hugging Face causal language model.
        batch: on the device of its input embedding.
    """
    predicts = batch.label_positions()
    head = model.get_output_embeddings()  # type: ignore[operator]
    watched = nullcontext() if head is None else head_restricted_to(head, predicts)
    with watched:
        logits = _run(model, batch)
    return logits[predicts.to(logits.device)] if head is None else logits[0]


def _run(model: nn.Module, batch: TokenBatch) -> Tensor:
    """The logits of a forward pass.

    Right-padded batches go without an attention mask: under causal attention no real position
    sees the padding behind it, and attention kernels are faster without a mask.
    """
    arguments: dict[str, Tensor] = {}
    if not _is_right_padded(batch):
        arguments["attention_mask"] = batch.attention_mask.long()
        arguments["position_ids"] = batch.position_ids()
    logits: Tensor = model(input_ids=batch.input_ids, use_cache=False, **arguments).logits
    return logits


def _is_right_padded(batch: TokenBatch) -> bool:
    mask = batch.attention_mask
    return bool((mask[:, 1:] <= mask[:, :-1]).all())


@contextmanager
def _loading(what: str) -> Iterator[None]:
    """One line for anything that keeps a model from loading, without the hub's own log lines."""
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.CRITICAL)
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"cannot load {what}: {_first_line(error)}") from error
    finally:
        hub.setLevel(level)


def _check_folder(name: str) -> None:
    looks_local = name.startswith((".", "/", "~")) or name.count("/") != 1
    path = Path(name).expanduser()
    if looks_local and "/" in name and not path.is_dir():
        raise InputError(f"{name}: no such model folder")
    if path.is_dir() and not (path / "config.json").is_file():
        raise InputError(f"{name}: not a model folder: it has no config.json")


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
