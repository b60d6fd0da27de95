"""The pages say what the code does: the tutorial's output, every command's options, every public name, column and route; and they build."""

import doctest
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import clip_anatomy as ca
from clip_anatomy.cli.main import VERBS, app
from clip_anatomy.store.rows import COLUMNS
from clip_anatomy.studio.routes import router

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    page for page in [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"] if page.name not in ("api.md", "cli.md")
)


def commands(page: Path) -> list[str]:
    """Lines of a page that call the command line, also behind `&&`."""
    lines = page.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    return [part.strip() for line in lines for part in line.split("&&") if part.strip().startswith("clip-anatomy ")]


def test_the_tutorial_prints_what_it_shows() -> None:
    failed, tried = doctest.testfile(str(ROOT / "docs" / "tutorial.md"), module_relative=False)
    assert tried > 10
    assert not failed


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_the_pages_have_verbs_and_options_that_exist(page: Path) -> None:
    built = app()
    for command in commands(page):
        words = shlex.split(command, comments=True)[1:]
        if words[:1] and words[0].startswith("-"):
            continue
        assert words[0] in VERBS, command
        known = {name for argument in built[words[0]].assemble_argument_collection() for name in argument.names}
        given = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        assert given <= known | {"--help", "--debug", "--allow-network", "--log"}, command


def test_commands_are_found() -> None:
    assert sum(len(commands(page)) for page in PAGES) > 60


def test_everything_public_is_on_a_page() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    missing = [name for name in ca.__all__ if not re.search(rf"\b{name}\b", text)]
    store = (ROOT / "docs" / "store.md").read_text(encoding="utf-8")
    missing += [f"column {name}" for name in COLUMNS if f"`{name}`" not in store]
    studio = (ROOT / "docs" / "studio.md").read_text(encoding="utf-8")
    routes = {(method, route.path.removeprefix("/api/v1")) for route in router.routes for method in route.methods}
    missing += [f"route {method} {path}" for method, path in sorted(routes) if f"`{method} {path}`" not in studio]
    assert not missing


def test_every_page_is_in_the_index_and_in_the_list_for_programs() -> None:
    index, listed = ((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("index.md", "llms.txt"))
    names = {page.stem for page in PAGES} - {"index", "README"}
    assert not {name for name in names if f"({name}.md)" not in index or f"({name}.html)" not in listed}


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("sphinx", reason="the documentation needs pip install '.[docs]'")
    run = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "dummy", "-d", str(tmp_path / "trees"), str(ROOT / "docs"), str(tmp_path / "site")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    api, cli = ((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("api.md", "cli.md"))
    assert not [name for name in ca.__all__ if f"clip_anatomy.{name}\n" not in api]
    assert not [verb for verb in VERBS if f"\n## {verb}\n" not in cli]
