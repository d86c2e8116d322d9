"""The README's example runs and prints what it says."""

import re
from pathlib import Path


def test_the_example_in_the_readme_runs_as_printed(capsys):
    text = (Path(__file__).parents[1] / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    said = re.search(r"print\(.*?\)\s+# (torch\.Size\(\[\d+, \d+\]\))", code)
    assert capsys.readouterr().out.strip() == said.group(1)
