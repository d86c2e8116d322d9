"""The README's lines about data do what it says, and its documents are the writer's."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

from hops.documents import DOCUMENT_TYPES, read_documents

README = (Path(__file__).parents[1] / "README.md").read_text()


def data_commands() -> list[list[str]]:
    block = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)[0].replace("\\\n", " ")
    return [shlex.split(line)[3:] for line in block.splitlines()]


def test_the_data_commands_run_in_order_and_write_what_is_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commands = data_commands()
    assert [words[0] for words in commands] == [
        *("seeds", "base", "wrapper", "alternating", "distractors", "combine", "audit"),
    ]
    script = "import json, sys\nfrom hops.cli import main\nfor line in sys.stdin:\n"
    script += "    main(json.loads(line))\n"
    # A process of its own, so that this many documents are not slowed by the checks of types.
    subprocess.run(
        [sys.executable, "-c", script],
        input="\n".join(map(json.dumps, commands)),
        check=True,
        capture_output=True,
        text=True,
    )
    written = {doc.type: set() for doc in read_documents(Path("training_set.jsonl"))}
    for doc in read_documents(Path("documents.jsonl")):
        written[doc.type].add(doc.text)
    examples = re.search(r"```\n(definition .*?)```", README, flags=re.DOTALL)
    assert examples is not None
    shown = re.split(r"\n(?=\w)", examples[1].rstrip())
    assert {text.split()[0] for text in shown} == set(DOCUMENT_TYPES)
    for text in shown:
        lines = [line[12:] for line in text.splitlines()]
        assert "\n".join(lines) in written[text.split()[0]], text


def test_the_readme_is_short():
    assert len(README.splitlines()) < 150
