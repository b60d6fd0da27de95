"""The notebooks of examples/ run as they stand, and print what they show."""

import contextlib
import doctest
import io
import re
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples" / "notebooks").glob("*.md"))
pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_four_are_there() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["first_steps", "pairs", "repair", "segmentation"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_prints_what_it_shows(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text, space = path.read_text(encoding="utf-8"), dict[str, Any]()
    cells = re.findall(r"```\{code-cell\} python\n(.*?)```\n\n```text\n(.*?)```", text, re.DOTALL)
    assert len(cells) == text.count("{code-cell}")  # each shows what it prints
    for code, shown in cells:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, path.name, "exec"), space)
        same = doctest.OutputChecker().check_output(
            shown, printed.getvalue(), doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        )
        assert same, f"{code}\n{printed.getvalue()}"
