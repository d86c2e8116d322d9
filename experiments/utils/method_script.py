"""A method as a command: flags, a run that can be killed and taken up again, three files.

``STEM.jsonl`` has the documents, best first; ``STEM.metrics.json`` how well the truth was found;
``STEM.arguments.json`` every argument with its default filled in, and digests of what was read.
``STEM.timing.json`` is apart from them: the others have the same bytes whenever the same is run.
"""

import hashlib
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import field, make_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from attribution.errors import AttributionError
from hops.errors import HopsError
from if_query.command_line import parse
from if_query.errors import InputError, command_errors
from if_query.whole_files import replacing, write_json
from tyro.conf import OmitArgPrefixes
from utils.attribution_method import Method
from utils.attribution_task import AttributionTask, TaskArguments
from utils.method_run import OutputArguments, is_finished, kept_parts


def run_method(
    name: str,
    method: Method,
    document: str | None,
    args: Sequence[str] | None = None,
    *,
    program: str | None = None,
) -> None:
    """Read the flags, whose defaults are the fields of ``method``, score and write.

    Args:
        name: the method's name in keys and messages.
        method: its defaults.
        document: the script's docstring, of which ``--help`` shows what stands before the command.
        args: the arguments; those of the process by default.
        program: the script's name, if it is not that of the method.
    """
    kind = type(method)
    config_type = make_dataclass(
        "Config",
        [
            ("task", OmitArgPrefixes[TaskArguments]),
            ("output", OmitArgPrefixes[OutputArguments]),
            ("method", OmitArgPrefixes[kind], field(default=method)),  # type: ignore[valid-type, misc]
        ],
        frozen=True,
    )
    with one_line_errors():
        config: Any = parse(
            config_type,
            program=program or f"{name}.py",
            args=args,
            description=(document or "").partition("\nCommand:")[0],
        )
        score_and_write(name, config.method, config.task, config.output)


def run_chosen_method(
    methods: Mapping[str, Method],
    program: str,
    document: str | None,
    args: Sequence[str] | None = None,
) -> None:
    """The same for a script of several methods, of which ``--method NAME`` chooses one.

    Args:
        methods: by name; ``--help`` without a method shows the flags of the first.
        program: the script's name.
        document: the script's docstring.
        args: the arguments; those of the process by default.
    """
    words = list(sys.argv[1:] if args is None else args)
    places = [place for place, word in enumerate(words) if word.partition("=")[0] == "--method"]
    with one_line_errors():
        if places:
            _, inline, name = words[places[0]].partition("=")
            rest = words[places[0] + 1 :]
            name = name if inline else rest.pop(0) if rest else ""
            words = words[: places[0]] + rest
        elif {"-h", "--help"} & set(words):
            name = next(iter(methods))
        else:
            raise InputError(f"expected --method NAME, one of {', '.join(methods)}")
        if name not in methods:
            raise InputError(f"--method: expected one of {', '.join(methods)}, got {name!r}")
    chosen = f"{document}".partition("\nCommand:")[0]
    chosen += f"\n\n--method is one of {', '.join(methods)}; here are the flags of {name}."
    run_method(name, methods[name], chosen, words, program=program)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """What a user causes is one line on stderr and exit status 2."""
    with command_errors():
        try:
            yield
        except (AttributionError, HopsError) as error:
            raise InputError(str(error)) from error


def score_and_write(
    name: str, method: Method, arguments: TaskArguments, output: OutputArguments
) -> None:
    """Score all documents and write the files; a finished run is not repeated.

    Raises:
        InputError, AttributionError, HopsError: unfit input; nothing of this run stays.
    """
    output.check()
    method.check()
    arguments.check()
    for needed, flag in ((method.needs_old, "old"), (method.needs_new, "new")):
        if needed and getattr(arguments, flag) is None:
            raise InputError(f"{name} needs the {flag} checkpoint: pass --{flag}")
    from utils.method_results import check_own_fields

    task = AttributionTask.read(arguments)
    check_own_fields(task, name)
    resolved = resolved_arguments(name, method, task, output)
    if is_finished(output, resolved):
        print(f"already there: {output.output}")
        return
    with kept_parts(output, resolved) as parts:
        task = task.with_parts(parts)
        judged = ~method.validation_queries(task)
        started = time.monotonic()
        task.load(old=method.needs_old, new=method.needs_new)
        loaded = time.monotonic()
        scores = method.scores(task)
        seconds = time.monotonic() - loaded
        write_results(name, method, task, np.asarray(scores), judged, output, resolved)
        write_json(
            output.beside(".timing.json"),
            {
                "loading_seconds": round(loaded - started, 3),
                "seconds": round(seconds, 3),
                "documents_per_second": round(len(task.documents) / seconds, 3),
                "resumed": output.resume,
            },
        )
    print(
        f"{len(task.documents)} documents, {len(task.queries)} queries in {seconds:.1f} s "
        f"({len(task.documents) / seconds:.0f} documents per second), after "
        f"{loaded - started:.1f} s of loading"
    )
    print(f"wrote {output.output} and {output.beside('.metrics.json')}")


def write_results(
    name: str,
    method: Method,
    task: AttributionTask,
    scores: np.ndarray,
    judged: np.ndarray,
    output: OutputArguments,
    resolved: dict[str, Any],
) -> None:
    """Metrics and arguments, and last the rows: where they are, the run is finished."""
    from utils.method_results import result_rows, retrieval_metrics, summary_lines

    if not np.isfinite(scores).all():
        query, document = np.argwhere(~np.isfinite(scores))[0]
        raise InputError(
            f"the score of document {document} for {task.queries[query].query_id} is not finite"
        )
    rows = result_rows(task, name, scores)
    retrieval = retrieval_metrics(task, scores, judged, output.cutoffs)
    metrics = {
        "method": name,
        "title": method.title,
        "num_documents": len(task.documents),
        "num_queries": len(task.queries),
        "num_judged_queries": int(judged.sum()),
        **task.notes,
        "retrieval": retrieval,
    }
    write_json(output.beside(".arguments.json"), resolved)
    write_json(output.beside(".metrics.json"), metrics)
    with replacing(output.output) as temporary:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        temporary.write_text("".join(lines), encoding="utf-8")
    for line in summary_lines(retrieval, output.cutoffs):
        print(line)


def resolved_arguments(
    name: str, method: Method, task: AttributionTask, output: OutputArguments
) -> dict[str, Any]:
    """Everything that the results depend on, as JSON."""
    given = vars(task.arguments) | vars(method) | {"cutoffs": output.cutoffs}
    given = {key: value for key, value in given.items() if not key.startswith("__")}
    given |= {"output": output.output, "device": task.device}
    read: dict[str, Sequence[Path | None]] = {
        "dataset": [task.arguments.dataset],
        "queries": [task.arguments.queries],
    }
    for flag in ("old", "new"):
        folder = Path(getattr(task.arguments, flag) or "")
        is_asked = method.needs_new and getattr(task.arguments, flag) is not None
        read[flag] = sorted(folder.glob("*")) if is_asked and folder.is_dir() else []
    digests = {key: digest([one for one in paths if one]) for key, paths in read.items()}
    return {
        "method": name,
        **{key: json_value(value) for key, value in given.items()},
        "sha256": digests,
    }


def json_value(value: Any) -> Any:
    """Paths as text and tuples as lists."""
    if isinstance(value, tuple):
        return [json_value(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def digest(paths: Sequence[Path]) -> str | None:
    """SHA-256 of the names and contents of files; None where there are none."""
    if not paths:
        return None
    whole = hashlib.sha256()
    for path in paths:
        if path.is_file():
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            whole.update(f"{path.name} {content}\n".encode())
    return whole.hexdigest()
