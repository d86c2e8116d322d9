"""Conversations with paraphrases for the scripts about them, and what a refusal is."""

import json

import pytest

IDS = (0, 1, 2, 3, 5, 8, 10, 12)
TOPICS = ("bread", "rain", "dogs", "rivers", "songs", "trains", "cheese", "stars")


def turn(user, assistant):
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def samples(**columns):
    made = []
    for key, topic in zip(IDS, TOPICS, strict=True):
        row = {"id": key, "messages": turn(f"What are {topic}?", f"They are {topic}, indeed.")}
        row["paraphrased_messages"] = turn(f"Explain {topic}.", f"These, surely, are {topic}!")
        made.append(row | {name: turn(*texts) for name, texts in columns.items()})
    return made


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path):
    return json.loads(path.read_text())


def refused(capsys, run, *parts):
    """Exit status 2 and one line on stderr that has these parts."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as leaving:
        run()
    assert leaving.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    for part in parts:
        assert part in lines[0]
