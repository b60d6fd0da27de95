"""docs/how-to.md and docs/tutorial.md print what they show: their commands typed in an empty folder, the Python of the first run."""

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

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "how-to.md"
pytestmark = pytest.mark.usefixtures("one_thread")


def typed(command: str) -> str:
    """What a command prints on standard output."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(shlex.split(command)[1:]) == 0
    return "\n".join(line.rstrip() for line in printed.getvalue().strip("\n").splitlines())


def prints_what_it_shows(page: Path) -> int:
    """Type the commands of a page, in the current folder, and compare; how many there were."""
    text, tried = page.read_text(encoding="utf-8"), 0
    for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, shown = part.partition("\n")
            wanted, found = shown.strip("\n") + "\n", typed(command) + "\n"
            same = doctest.OutputChecker().check_output(wanted, found, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
            assert same, f"{command}\n{found}"
            tried += 1
    return tried


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path


def test_the_page_prints_what_it_shows(empty_folder: Path) -> None:
    for picture in examples():
        shutil.copy(picture, empty_folder)
    model = Path(examples()[0]).parents[1]
    (empty_folder / "my-model").mkdir()
    for file in (*model.glob("open_clip*"), model / "vocab.json"):
        shutil.copy(file, empty_folder / "my-model")
    assert prints_what_it_shows(PAGE) >= 9
    failed, examples_run = doctest.testfile(str(PAGE), module_relative=False)
    assert examples_run > 10
    assert not failed


@pytest.mark.slow  # half a minute: 600 pictures indexed; its repair is also that of examples/notebooks/repair.md
def test_the_commands_of_the_tutorial_print_what_it_shows(empty_folder: Path) -> None:
    assert prints_what_it_shows(DOCS / "tutorial.md") == 2


def test_the_repair_of_the_tutorial_is_that_of_the_notebook() -> None:
    page = (DOCS / "tutorial.md").read_text(encoding="utf-8")
    notebook = (DOCS.parent / "examples" / "notebooks" / "repair.md").read_text(encoding="utf-8")
    for row in ("worst group", "average"):
        shown = re.search(rf"^{row} .*?([\d.]+) % +([\d.]+) % .* (\S+) to (\S+)$", page, re.MULTILINE)
        run = re.search(rf"^  {row} +([\d.]+) +([\d.]+)  \((\S+) to (\S+)\)$", notebook, re.MULTILINE)
        assert shown is not None
        assert run is not None
        assert shown.groups() == run.groups()
    assert re.findall(r"With (\S+) along the cue", page) == re.findall(r"Which shape\? (\S+) along cue", notebook)


def test_every_question_of_the_index_has_its_section() -> None:
    sections = re.findall(r"^## (.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(sections) == len(set(sections)) == 9
