"""The quick start runs as printed."""

import re
from pathlib import Path

import torch

README = Path(__file__).parents[1] / "README.md"


def test_the_quick_start_runs_as_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    names = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec(compile(code, str(README), "exec"), names)
    weights = names["tracker"].weights
    assert weights["books"] > 0.55
    assert str(weights) in capsys.readouterr().out
