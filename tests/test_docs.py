"""The pages say what the code does: the tutorial's output, every command's options, every public name, column and route; and they build."""

import dataclasses
import doctest
import io
import re
import shlex
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

import clip_anatomy as ca
from clip_anatomy.cli.main import VERBS, app
from clip_anatomy.store.fixed_point import fixed_point_arrays
from clip_anatomy.store.manifest import PARTS, Manifest
from clip_anatomy.store.rows import SCHEMA
from clip_anatomy.studio import prometheus_metrics, server
from clip_anatomy.studio.routes import router

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    page
    for page in [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"]
    if page.name not in ("api.md", "cli.md") and not page.name.startswith("notebook-")
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


def test_options_in_running_text_exist() -> None:
    """Options are named in backticks too, where nobody types them and an old name stays."""
    known = {"--help", "--version", "--debug", "--allow-network", "--log"}
    built = app()
    for verb in VERBS:
        known |= {name for argument in built[verb].assemble_argument_collection() for name in argument.names}
    scripts = [*(ROOT / "bench").glob("*.py"), *(ROOT / "tools").iterdir(), *(ROOT / "examples").glob("*.py")]
    for script in scripts:
        known |= set(re.findall(r"\"(--[a-z][a-z-]+)\"", script.read_text(encoding="utf-8")))
    others = (
        r"\b(pip|sbatch|pytest|uv|jupytext|embedding-atlas|compute_\w+)\b"  # programs that have options of their own
    )
    wrong = []
    for page in PAGES:
        if page.name in ("decisions.md", "coming-from.md"):  # options that were refused, and those of others
            continue
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for code in re.findall(r"`([^`\n]+)`", text):
            if not re.search(others, code) and set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", code)) - known:
                wrong.append(f"{page.name}: {code}")
    assert not wrong


def test_every_option_says_what_it_does() -> None:
    for verb in VERBS:
        screen, built = io.StringIO(), app(verb)
        built.help_print([verb], console=Console(file=screen, width=1000, no_color=True, legacy_windows=False))
        lines = [line.strip("│ \n") for line in screen.getvalue().splitlines() if line.startswith("│")]
        shown = [argument.names[0] for argument in built[verb].assemble_argument_collection() if argument.show]
        assert len(lines) == len(shown), verb
        assert not [line for line in lines if re.split(r"\s{2,}", line)[-1].startswith("-")], verb
        assert not [name for name in shown if name not in " ".join(lines)], verb


def test_everything_public_is_on_a_page() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    missing = [name for name in ca.__all__ if not re.search(rf"\b{name}\b", text)]
    store = (ROOT / "docs" / "store.md").read_text(encoding="utf-8")
    missing += [f"field of a store {name}" for name in sorted(fields_of_a_store()) if f"`{name}`" not in store]
    studio = (ROOT / "docs" / "studio.md").read_text(encoding="utf-8")
    routes = {(method, route.path.removeprefix("/api/v1")) for route in router.routes for method in route.methods}
    served = Path(server.__file__).read_text(encoding="utf-8")
    routes |= {(method.upper(), path) for method, path in re.findall(r"@app\.(get|post)\(\"(/\w+)\"", served)}
    assert ("GET", "/metrics") in routes
    missing += [f"route {method} {path}" for method, path in sorted(routes) if f"`{method} {path}`" not in studio]
    metrics = set(re.findall(r"clip_anatomy_[a-z_]+", Path(prometheus_metrics.__file__).read_text(encoding="utf-8")))
    missing += [f"metric {name}" for name in sorted(metrics) if f"`{name}" not in studio]  # counters end in _total
    assert len(metrics) > 5
    assert not missing


def fields_of_a_store() -> set[str]:
    """Tables and columns of rows.sqlite, keys of store.json, arrays of a block."""
    database = sqlite3.connect(":memory:")
    database.executescript(SCHEMA)
    made = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    tables = [name for (name,) in made if not name.startswith("sqlite_")]
    columns = {row[1] for table in tables for row in database.execute(f"PRAGMA table_info({table})")}
    database.close()
    arrays = {*fixed_point_arrays(32), *PARTS, "norm"}
    return {*tables} | columns | arrays | {field.name for field in dataclasses.fields(Manifest)}


def test_links_between_pages_lead_somewhere() -> None:
    """Sphinx does not know files outside docs/, so it is not asked."""
    broken = []
    for page in [*PAGES, *(ROOT / "examples" / "notebooks").glob("*.md")]:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            path, _, anchor = target.partition("#")
            file = page.parent / path if path else page
            if not re.match(r"https?:", target) and (not file.exists() or (anchor and anchor not in anchors(file))):
                broken.append(f"{page.name}: {target}")
    assert not broken


def anchors(page: Path) -> set[str]:
    """Headings as GitHub and MyST name them in links."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_in_the_index_and_in_the_list_for_programs() -> None:
    index, listed = ((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("index.md", "llms.txt"))
    names = {page.stem for page in PAGES} - {"index", "README"}
    assert not names & {"search", "genindex", "py-modindex"}  # Sphinx writes pages of its own over these
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
