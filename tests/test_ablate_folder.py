"""A folder of ablations keeps earlier studies: only the same question again takes the place of its answer."""

import json
from pathlib import Path

import pytest

import clip_anatomy as ca
from clip_anatomy.cli.main import main

pytestmark = pytest.mark.usefixtures("one_thread")


def test_other_questions_stay_beside_each_other(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    store, out = tmp_path / "s", tmp_path / "out"
    ca.index(ca.load("demo", parity=False), "world:40:test", store)
    asked = [["--select", "7.0"], ["--select", "7.1"], ["--select", "7.0"], ["--select", "7.0", "--label", "colour"]]
    for select in asked:
        assert main(["ablate", str(store), *select, "--out", str(out)]) == 0
    studies = json.loads((out / "ablate.json").read_text())["studies"]
    said = {one["figure"]: (one["effects"][0]["description"], one["column"]) for one in studies}
    assert {name: column for name, (_, column) in said.items()} == {
        "selected.png": "shape", "selected-2.png": "shape", "selected-3.png": "colour",
    }  # fmt: skip
    assert len(set(said.values())) == 3
    assert sorted(path.name for path in out.glob("*.png")) == sorted(said)
