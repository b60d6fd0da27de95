"""docs/how-to.md prints what it shows: its commands typed in an empty folder, its Python run."""

import contextlib
import doctest
import io
import re
import shlex
import shutil
from pathlib import Path

import pytest

from clip_anatomy.cli.main import main
from clip_anatomy.loading.demo import examples

PAGE = Path(__file__).parents[1] / "docs" / "how-to.md"
pytestmark = pytest.mark.usefixtures("one_thread")


def typed(command: str) -> str:
    """What a command prints on standard output."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(shlex.split(command)[1:]) == 0
    return "\n".join(line.rstrip() for line in printed.getvalue().strip("\n").splitlines())


def test_the_page_prints_what_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    for picture in examples():
        shutil.copy(picture, tmp_path)
    model = Path(examples()[0]).parents[1]
    (tmp_path / "my-model").mkdir()
    for file in (*model.glob("open_clip*"), model / "vocab.json"):
        shutil.copy(file, tmp_path / "my-model")
    text, tried = PAGE.read_text(encoding="utf-8"), 0
    for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, shown = part.partition("\n")
            wanted, found = shown.strip("\n") + "\n", typed(command) + "\n"
            same = doctest.OutputChecker().check_output(wanted, found, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
            assert same, f"{command}\n{found}"
            tried += 1
    assert tried >= 9
    failed, examples_run = doctest.testfile(str(PAGE), module_relative=False)
    assert examples_run > 10
    assert not failed


def test_every_question_of_the_index_has_its_section() -> None:
    sections = re.findall(r"^## (.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(sections) == len(set(sections)) == 9
