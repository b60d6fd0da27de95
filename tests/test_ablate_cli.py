"""`clip-anatomy ablate` as a person meets it: tables, figures, JSON, messages, and nothing half-written."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import clip_anatomy as ca
from clip_anatomy.cli import main as cli
from clip_anatomy.edits.selection import Selection
from clip_anatomy.report.ablation_figure import draw_study
from clip_anatomy.studies.study_result import Effect, Study

Main = Callable[..., tuple[int, str, str]]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("cli") / "store"
    ca.index(ca.load("demo", parity=False), "world:80:test", place, keep="heads,mlps")
    return place


@pytest.fixture
def main(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Main:
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> tuple[int, str, str]:
        code = cli.main([str(word) for word in words])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_a_table_a_figure_and_json(main: Main, store: Path, tmp_path: Path) -> None:
    code, out, err = main("ablate", store)
    assert code == 0, err
    assert "heads of layers 0-6" in out
    assert "worst group" in out
    assert "by group" in out
    folder = tmp_path / "clip-anatomy-ablate"
    assert sorted(path.name for path in folder.iterdir()) == ["ablate.json", "layers.png", "run.json"]
    with Image.open(folder / "layers.png") as figure:
        assert figure.width > 1000
    told = json.loads((folder / "ablate.json").read_text())
    assert told["schema"] == "clip-anatomy/ablations/1"
    assert [one["name"] for one in told["studies"]] == ["layers"]
    assert len(told["studies"][0]["effects"]) == 8
    assert "figures and numbers: clip-anatomy-ablate" in err
    # Another study stands beside the first one, the same question takes the place of its answer; files of others stay.
    (folder / "mine.txt").write_text("mine")
    assert main("ablate", store, "--study", "mlps,layers", "--by", "zero")[0] == 0
    assert main("ablate", store, "--study", "layers", "--label", "count")[0] == 0
    assert main("ablate", store, "--study", "layers", "--label", "count")[0] == 0
    names = ["ablate.json", "layers-2.png", "layers-zero.png", "layers.png", "mine.txt", "mlps-zero.png", "run.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    studies = json.loads((folder / "ablate.json").read_text())["studies"]
    assert sorted((one["name"], one["by"], one["column"]) for one in studies) == [
        ("layers", "mean", "count"),
        ("layers", "mean", "shape"),
        ("layers", "zero", "shape"),
        ("mlps", "zero", "shape"),
    ]
    ca.index(ca.load("demo", parity=False), "world:20:test", tmp_path / "another")
    code, out, err = main("ablate", tmp_path / "another")
    assert code == 2
    assert "holds studies of another store" in err


def test_the_verb_and_the_function_are_one(main: Main, store: Path, tmp_path: Path) -> None:
    code, out, err = main("ablate", store, "--study", "heads", "--by", "zero", "--json")
    assert code == 0, err
    found = ca.ablate(store, study="heads", by="zero")
    mine, theirs = found.to_dict()["studies"][0], json.loads(out)["studies"][0]
    assert json.loads(json.dumps(mine)) | {"seconds": 0} == theirs | {"seconds": 0}
    assert repr(found) == found.summary() == found.studies[0].summary()
    found.save(tmp_path / "drawn")
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == ["ablate.json", "heads-zero.png"]
    assert "<pre>" in found._repr_html_()
    assert found.figure().get_figwidth() > 5


def test_json_alone_writes_nothing(main: Main, store: Path, tmp_path: Path) -> None:
    words = (
        "--select",
        "7.0,7.3",
        "--select",
        "layer=0-3+mlp=all",
        "--label",
        "count",
        "--group",
        "digit",
        "--by",
        "zero",
    )
    code, out, err = main("ablate", store, *words, "--json")
    assert code == 0, err
    told = json.loads(out)["studies"][0]
    assert told["effects"][0]["spec"] == "7.0,7.3"
    assert Selection.of_dict(told["effects"][1]["selection"]) == Selection.parse("layer=0-3+mlp=all", 8, 6)
    assert (told["column"], told["group_column"], told["by"], told["baseline"]) == ("count", "digit", "zero", "zero")
    assert not list(tmp_path.iterdir())


def test_roles_texts_and_crossed_groups(main: Main, store: Path, tmp_path: Path) -> None:
    code, out, err = main(
        "ablate", store, "--select", "role=background", "--group", "background+count", "--out", tmp_path / "a"
    )
    assert code == 0, err
    assert "role=background" in out
    assert "groups of fewer than 10 images say little" in err
    assert (tmp_path / "a" / "selected.png").is_file()
    code, out, err = main("ablate", store, "--study", "heads", "--by", "texts", "--texts", "3", "--json")
    assert code == 0, err
    assert json.loads(out)["studies"][0]["baseline"] == "their first 3 texts"


def test_all_studies_leave_out_what_a_store_cannot_answer(main: Main, tmp_path: Path) -> None:
    ca.index(ca.load("demo", parity=False), "world:20:test", tmp_path / "few", layers="last:2")
    code, out, err = main("ablate", tmp_path / "few", "--study", "all", "--json")
    assert code == 0, err
    assert [one["name"] for one in json.loads(out)["studies"]] == ["heads", "class-to-class"]
    assert "no study of layers" in err
    assert "no study of mlps" in err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--study", "layer"], "Type one of: layers, last, heads, mlps, class-to-class, all"),
        (["--study", ","], "no study is named"),
        (["--study", "heads", "--select", "7.0"], "exclude each other"),
        (["--select", "8.0"], "heads that do not exist: 8.0. Type LAYER.HEAD"),
        (["--by", "nothing"], "Type one of: mean, zero, texts, swap"),
        (["--by", "mean", "--texts", "3"], "Type --by texts"),
        (["--by", "texts", "--texts", "0"], "Type --texts 20"),
        (["--by", "swap", "--other", "x"], "there is no image 'x'"),
        (["--classes", "one"], "two or more are needed"),
        (["--classes", "a, b, c"], "match no class name"),
        (["--label", "hue"], "Type --label COLUMN"),
        (["--group", "hue"], "Type --group COLUMN"),
        (["--means", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    main: Main, store: Path, tmp_path: Path, words: list[str], says: str
) -> None:
    code, out, err = main("ablate", store, *words)
    assert code == 2, err
    assert says in err
    assert out == ""
    assert len(err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_no_store_is_named(main: Main, tmp_path: Path) -> None:
    code, _, err = main("ablate", tmp_path / "nothing")
    assert code == 2
    assert "clip-anatomy index" in err


@pytest.mark.parametrize("name", ["layers", "last", "heads", "mlps", "selected"])
@pytest.mark.parametrize("grouped", [False, True])
def test_every_figure_can_be_drawn(name: str, grouped: bool) -> None:
    groups = (("first", 5), ("second", 7)) if grouped else ()

    def effect(description: str, at: int) -> Effect:
        selection = Selection(((at // 16, at % 16),))
        return Effect(
            description, selection, 0.9 - at / 600, 0.8, (0.5, 0.7) if grouped else (), at, 1, -at / 600, 0.01
        )

    many = 24 * 16 if name == "heads" else 24
    effects = tuple(effect(f"a set whose name is quite long, number {at}", at) for at in range(many))
    whole = effect("nothing", 0)
    told = Study(
        name, "A study", "mean", "their mean", "x", "0", "s", 12, "label", ("a", "b"), "group", groups, whole, effects
    )
    assert draw_study(told).startswith(b"\x89PNG")
    assert ("worst group" in told.summary()) is grouped


def test_tables_fit_a_page_whatever_the_groups() -> None:
    names = tuple((f"waterbird number {at} on some land", 9) for at in range(12))
    sets = [Effect(f"a set whose name is much too long for a table, {at}", Selection(), 0.9, 0.9, tuple((at + n) / 20 for n in range(12)), 1, 1, 0.0, 0.01) for at in range(4)]  # fmt: skip
    told = Study("selected", "Sets", "mean", "their mean", "x", "0", "s", 108, "label", ("a", "b"), "place", names, sets[0], tuple(sets[1:]))  # fmt: skip
    lines = told.group_table().splitlines()
    assert max(map(len, lines)) <= 100
    assert "waterbird number 0 on some land" in lines[0]  # the worst one is there
    assert "groups that were worst" in lines[-1]
    assert all("…" in line for line in lines[2:6])
