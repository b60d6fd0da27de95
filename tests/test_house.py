"""The house rules that a machine can check: imports go one way, names are public, files are small, lint and types are clean."""

import ast
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import pytest

import clip_anatomy
from clip_anatomy.cli import main

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "clip_anatomy"
ORDER = [
    "errors",
    "argument_kinds",
    "torch_state",
    "number_ranges",
    "public_functions",
    "network",
    "progress",
    "partial_output",
    "files",
    "objects",
    "run_record",
    "atomic_output",
    "results",
    "engine",
    "images",
    "towers",
    "loading",
    "data",
    "split",
    "store",
    "naming",
    "edits",
    "maps",
    "retrieval",
    "studies",
    "evaluation",
    "report",
    "integrations",
    "studio",
    "cli",
]
MAY_NAME = {
    "open_clip": {"loading/open_clip_models.py", "loading/open_clip_inputs.py", "loading/tokenizer.py"},
    "transformers": {"loading/transformers_models.py", "loading/transformers_preprocess.py"},
    "timm": set(),
    "zarr": {"store/blocks.py", "data/tile_source.py"},
    "tifffile": {"data/tile_source.py"},
    "av": {"data/video_file.py", "report/film_files.py"},
    "matplotlib": {
        "report/figures.py",
        "report/explain_figure.py",
        "report/explain_folder.py",
        "report/ablation_figure.py",
        "report/alignment_figure.py",
        "report/concepts_figure.py",
        "report/mutual_figure.py",
        "report/pairs_figure.py",
        "report/pairs_page.py",
        "report/paths_figure.py",
        "report/repair_figure.py",
        "report/refer_folder.py",
        "report/text_page.py",
    },
    "captum": {"integrations/captum_attribution.py"},
    "ray": {"engine/ray_engine.py"},
    "obstore": {"objects.py"},
}
FILES = sorted(PACKAGE.rglob("*.py"))
HIDDEN = """from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clip_anatomy.report import html

def late() -> None:
    import clip_anatomy.cli.main
"""


def room(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imported(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module)
    return found


@pytest.mark.parametrize("path", [f for f in FILES if f.parent != PACKAGE], ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    assert wrong_way(path, ORDER.index(room(path))) == []


def wrong_way(path: Path, here: int) -> list[str]:
    """What a file imports from a room above its own, inside functions and for types too."""
    inside = [name for name in imported(path) if name.startswith("clip_anatomy.")]
    return [name for name in inside if ORDER.index(name.split(".")[1]) > here]


def test_an_import_the_wrong_way_is_seen_wherever_it_stands(tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text(HIDDEN)
    assert wrong_way(tmp_path / "planted.py", ORDER.index("split")) == ["clip_anatomy.report", "clip_anatomy.cli.main"]


@pytest.mark.parametrize("library", MAY_NAME)
def test_each_outside_library_is_named_in_its_own_files_only(library: str) -> None:
    naming = {str(f.relative_to(PACKAGE)) for f in FILES if any(n.split(".")[0] == library for n in imported(f))}
    assert naming <= MAY_NAME[library]


@pytest.fixture(scope="module")
def health() -> Any:
    loader = SourceFileLoader("health", str(ROOT / "tools" / "health"))
    module = module_from_spec(spec_from_loader("health", loader))
    loader.exec_module(module)
    return module


def test_nothing_imports_in_a_circle_also_inside_functions_and_for_types(health: Any) -> None:
    graph = health.imports()
    assert len(graph) > 200
    assert {"split.layernorm", "towers.protocol"} <= graph["split.parts"] | graph["split.tokens"]
    assert health.cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert health.cycles(graph) == []


def test_a_circle_through_a_function_and_a_type_is_seen(health: Any, tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("def late():\n    from clip_anatomy.two import name\n")
    (tmp_path / "two.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from clip_anatomy import three\n"
    )
    (tmp_path / "three.py").write_text("import clip_anatomy.one\n")
    assert health.cycles(health.imports(tmp_path)) == [["one", "three", "two"]]


def test_a_passage_that_stands_twice_is_seen_and_imports_are_not_counted(health: Any, tmp_path: Path) -> None:
    names = ",\n".join(f"    name_{i}" for i in range(9))
    body = "\n".join(f"step_{i} = {i}" for i in range(health.SAME))
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text(f"from elsewhere import (\n{names},\n)\n\n{body}\n")
    first = 13  # below eleven lines of import and an empty one
    assert health.passages(tmp_path) == [f"one.py:{first} = two.py:{first}"]


def test_no_file_and_no_class_has_the_name_of_another(health: Any, tmp_path: Path) -> None:
    for room in ("one", "two"):
        (tmp_path / room).mkdir()
        (tmp_path / room / "same.py").write_text("class Same:\n    pass\n")
    assert sorted(health.repeated(tmp_path)) == ["class Same", "same.py"]
    assert health.repeated() == {}


def test_verbs_of_the_command_line_are_public_functions() -> None:
    verbs = set(main.VERBS) - {"demo", "serve"}
    assert verbs <= set(clip_anatomy.__all__)


def test_public_names_are_listed_once() -> None:
    listed = [
        alias.name
        for line in ast.parse((PACKAGE / "__init__.pyi").read_text()).body
        if isinstance(line, ast.ImportFrom)
        for alias in line.names
    ]
    assert len(listed) == len(set(listed))
    assert sorted(listed) == list(clip_anatomy.__all__)
    source = (PACKAGE / "__init__.py").read_text()
    assert [name for name in listed if name != "errors" and f'"{name}"' in source] == []


def test_all_is_the_public_names() -> None:
    for name in clip_anatomy.__all__:
        assert getattr(clip_anatomy, name).__doc__, f"{name} has no docstring"
    assert {"load", "decompose", "heatmap", "errors"} <= set(clip_anatomy.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = clip_anatomy.nothing


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, clip_anatomy; print(*sorted({'torch','open_clip','transformers','matplotlib','zarr'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_stay_readable(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400, "at 400 lines something is split or deleted"


def test_the_root_holds_what_the_readme_lists() -> None:
    """What a test or a trial leaves behind in the working folder is not committed with it."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    folders = {"src", "training", "bench", "docs", "examples", "tests", "tools", ".ci", ".github"}
    files = {".gitignore", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "README.md", "pyproject.toml"}
    assert {name.partition("/")[0] for name in tracked} == folders | files


def test_no_path_of_a_machine_and_no_registry_host_is_written() -> None:
    hosts = [
        "pypi" + ".org",
        "pythonhosted" + ".org",
        "npmjs" + ".org",
        "deb.debian" + ".org",
        "/work" + "/main",
        "/root" + "/",
    ]
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in tracked:
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".json", ".html", ".txt", ".jsonl", ""} and path.is_file():
            text = path.read_text(errors="ignore")
            assert not [h for h in hosts if h in text], name


def test_lint_is_clean() -> None:
    for command in (["check"], ["format", "--check"]):
        run = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, run.stdout + run.stderr


def test_types_are_clean() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-4000:]
