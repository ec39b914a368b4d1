"""The README's Python prints what its comments say."""

import re
from pathlib import Path

import sklearn

README = Path(__file__).parents[1] / "README.md"


def test_examples_print_what_the_readme_says(capsys):
    code = "\n".join(re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL))
    expected = re.findall(r"^print\(.*\)  # (.*)$", code, re.MULTILINE)
    with sklearn.config_context():
        exec(compile(code, README, "exec"), {})
    assert len(expected) == 3
    assert capsys.readouterr().out.splitlines() == expected
