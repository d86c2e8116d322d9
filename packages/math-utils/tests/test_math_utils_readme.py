"""Examples run and print what they say; so does the quick start that was promised."""

import re
from pathlib import Path

import pytest
import torch
from math_utils import contrastive, curvature

README = (Path(__file__).parents[1] / "README.md").read_text()
DOCUMENTS = README + curvature.__doc__ + contrastive.__doc__
EXAMPLES = re.findall(r"```python\n(.*?)```", DOCUMENTS, flags=re.DOTALL)

QUICK_START = """
from math_utils.influence import (
    DataInfCalculator, InfluenceConfig, DiscriminativeGradientExtractor, InfluenceDistillation,
)
extractor = DiscriminativeGradientExtractor(model=model, config=InfluenceConfig(lambda_val=0.1, gamma_val=0.1))
calculator = DataInfCalculator(model=model, config=config, gradient_extractor=extractor)
influence = calculator.compute_influence(train_loader, probe_loader)      # [num_probe, num_train], positive = helpful
"""  # noqa: E501


@pytest.mark.parametrize("code", EXAMPLES, ids=["influence", "curvature", "contrastive"])
def test_an_example_in_the_readme_or_in_a_docstring_runs_as_printed(code, capsys):
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    said = re.findall(r"print\(.*?\)\s+# (torch\.Size\(\[\d+, \d+\]\))", code)
    assert said
    assert capsys.readouterr().out.strip().splitlines() == said


def test_the_quick_start_of_influence_runs_word_for_word():
    names = {"__name__": "readme"}
    exec(EXAMPLES[0], names)
    expected = names.pop("influence")
    exec(QUICK_START, names)
    assert torch.equal(names["influence"], expected)


def test_the_readme_is_short():
    assert len(README.splitlines()) < 150
