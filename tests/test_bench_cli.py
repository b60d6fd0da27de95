"""`clip-anatomy bench`: the list, one protocol, several methods under one, the table of maps, wrong words."""

import inspect
import json
import re
from pathlib import Path
from typing import Any

import minis
import pytest

import clip_anatomy as ca
from clip_anatomy.cli import bench as cli_bench
from clip_anatomy.cli.main import main
from clip_anatomy.data.masked_datasets import READERS, open_masked
from clip_anatomy.evaluation.protocols import PROTOCOLS

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def mini(tmp_path: Path) -> Any:
    def write(protocol: str) -> Path:
        (minis.MASKED | minis.LABELLED | minis.REFERRING)[PROTOCOLS[protocol].dataset](tmp_path)
        return tmp_path

    return write


def test_bench_lists_its_protocols(capsys: Any) -> None:
    assert main(["bench", "--list"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in PROTOCOLS)
    assert main(["bench", "--list", "--json"]) == 0
    assert set(PROTOCOLS) <= set(json.loads(capsys.readouterr().out))
    assert set(READERS) == {p.dataset for p in PROTOCOLS.values()}


def test_bench_of_a_protocol(capsys: Any, mini: Any) -> None:
    place = mini("coco-sample")
    words = ["bench", f"coco-sample:{place}", "--prompts", "1", "--side", "32", "--window", "32", "--stride", "32"]
    assert main([*words, "--method", "raw", "--classes"]) == 0
    said = capsys.readouterr().out
    for word in ("logit_scale", "brick wall", "mIoU", "pictures measured", "changed from the preset"):
        assert word in said
    (place / "masks" / "1.png").write_bytes(b"")
    assert main([*words, "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["skipped"][0]["id"] == "1"
    assert "skipped 1: the mask" in err


def test_bench_takes_a_papers_settings_and_its_class_names(capsys: Any, mini: Any, tmp_path: Path) -> None:
    place, file = mini("voc21"), tmp_path / "cls.txt"
    words = [
        "bench",
        f"voc21:{place}",
        "--like",
        "sclip",
        "--prompts",
        "1",
        "--side",
        "48",
        "--window",
        "32",
        "--stride",
        "16",
    ]
    names = open_masked("voc21", place).classes
    file.write_text("\n".join(["sky, wall, grass", *names[1:]]))
    assert main([*words, "--names", str(file), "--area", "0.2"]) == 0
    said = capsys.readouterr().out
    told = re.sub(r"\s+", " ", said)
    for line in (
        r"class names +cls\.txt, 23 texts \(SHA-256",
        r"area +0\.2 ",
        r"logit_scale +65\.0",
        r"settings of +SCLIP .*, but side, window, stride, prompts, area ",
        r"mIoU reported there +59\.63 %",
    ):
        assert re.search(line, told), line
    assert max(map(len, said.splitlines())) <= 100
    assert "background  " not in said  # the file has it
    assert main([*words, "--names", str(file), "--background", "sky"]) == 2
    assert "has a line for the background too. Leave background out" in capsys.readouterr().err
    assert main([*words[:-1], "16", "--background", "sky", "--background", "sea"]) == 0
    assert re.search(r"background +sky, sea", capsys.readouterr().out)


def test_bench_compares_methods_under_one_protocol(capsys: Any, mini: Any) -> None:
    words = ["bench", f"cod10k:{mini('cod10k')}", "--method", "raw,surgery"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["outcomes"]
    assert [one["configuration"]["method"] for one in found] == ["raw", "surgery"]
    assert main(words) == 0
    out = capsys.readouterr().out
    for one in found:
        assert f"{one['figures']['MAE']:.3f}" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["voc20"], "voc20 needs its data set: clip-anatomy bench voc20 PATH. Get VOCtrainval"),
        (["imagenet"], "'imagenet' is not known. Type one of: maps, speed, imagenet-seg-paper"),
        (["maps", "--pictures", "0"], "--pictures 0: at least one"),
        (["maps", "--side", "9"], "--side is not an option of maps. Type one of: --method, --pictures, --threshold"),
        (["cod10k", "nowhere", "--like", "sclip"], "--like is not an option of cod10k. Type one of: --method"),
        (["voc21", "nowhere", "--like", "lime"], "no settings like 'lime'. Type one of: sclip"),
        (["maps", "nowhere"], "nowhere is not a folder of pictures with masks: it is not there"),
        (["coco-sample", "nowhere", "--window", "30"], "hold no whole patches of 8. Type: --window 24"),
        (
            ["coco-sample", "nowhere", "--threshold", "1.5"],
            "--threshold 1.5 is no share. Type a number from 0 to 1: --threshold 0.1",
        ),
        (["coco-sample", "nowhere", "--prompts", "3"], "no list of 3 prompts. Type: --prompts 80 or --prompts 1"),
        (["coco-sample", "nowhere", "--threshold", "high"], "--threshold high is no number"),
        (
            ["coco-sample", "nowhere", "--text", "a dog"],
            "--text is not an option of coco-sample. Type one of: --method",
        ),
    ],
)
def test_bench_says_what_to_type(words: list[str], says: str, capsys: Any) -> None:
    assert main(["bench", *words]) == 2
    assert says in capsys.readouterr().err


def test_bench_maps(capsys: Any) -> None:
    words = ["bench", "maps", "--pictures", "3", "--method", "raw", "--method", "surgery"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["method"] for row in found["rows"]] == ["raw", "surgery"]
    assert main(words) == 0
    assert "pointing" in capsys.readouterr().out


def test_bench_is_a_function_whose_results_can_be_saved(tmp_path: Path) -> None:
    table = ca.bench("demo", "maps", pictures=2, method="raw,surgery")
    assert repr(table) == table.summary()
    assert {path.name for path in table.save(tmp_path / "new").iterdir()} == {"maptable.json", "maptable.txt"}
    assert json.loads((tmp_path / "new" / "maptable.json").read_text()) == table.to_dict()
    table.save(tmp_path / "new")  # over its own
    with pytest.raises(ca.errors.BadInput, match="has no figure"):
        table.figure()


def test_bench_has_the_options_of_the_verb() -> None:
    verb, function = (inspect.signature(one).parameters for one in (cli_bench.bench, ca.bench))
    own = {"where", "list_them", "classes", "model", "weights", "as_json", "device", "dtype"}
    assert set(verb) - own == set(function) - {"clip", "progress", "engine"}
    assert all(verb[name].default == function[name].default for name in set(verb) - own)
