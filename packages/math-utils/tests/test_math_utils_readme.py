"""The README's examples run and print what it says."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("code", EXAMPLES, ids=["influence", "curvature"])
def test_an_example_in_the_readme_runs_as_printed(code, capsys):
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    said = re.findall(r"print\(.*?\)\s+# (torch\.Size\(\[\d+, \d+\]\))", code)
    assert said
    assert capsys.readouterr().out.strip().splitlines() == said


def test_the_quick_start_of_influence_is_the_one_that_was_promised():
    """The lines that other documents print, word for word."""
    assert "\n".join(
        [
            "extractor = DiscriminativeGradientExtractor(",
            "    model=model, config=InfluenceConfig(lambda_val=0.1, gamma_val=0.1)",
            ")",
            "calculator = DataInfCalculator(model=model, config=config, "
            "gradient_extractor=extractor)",
            "influence = calculator.compute_influence(train_loader, probe_loader)",
        ]
    ) in EXAMPLES[0].replace("  # [num_probe, num_train], positive = helpful", "")
