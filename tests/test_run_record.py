"""What a run leaves behind: `run.json` in every folder, a log of JSON lines, and Python's logging under one name."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

import clip_anatomy as ca
from clip_anatomy import run_record
from clip_anatomy.cli.main import main
from clip_anatomy.loading.demo import examples
from clip_anatomy.progress import shown, silent

pytestmark = pytest.mark.usefixtures("one_thread")
PICTURE = str(examples()[0])


def explained(out: Path, *further: str) -> int:
    return main([*further, "explain", PICTURE, "--text", "a bird", "--out", str(out)])


def test_a_folder_says_which_run_made_it(tmp_path: Path) -> None:
    assert explained(tmp_path / "report") == 0
    said = json.loads((tmp_path / "report" / "run.json").read_text())
    assert said["command"][:3] == ["clip-anatomy", "explain", PICTURE]
    assert said["models"] == [{"name": "demo", "weights": ca.load("demo").digest}]
    assert said["versions"]["torch"]
    assert said["versions"]["numpy"]
    assert said["seconds"] > 0
    assert said["began"].endswith("Z")


def test_a_store_says_it_too_and_stays_sound(tmp_path: Path) -> None:
    store = tmp_path / "store"
    assert main(["index", "world:4:test", str(store)]) == 0
    assert json.loads((store / "run.json").read_text())["command"][1] == "index"
    assert ca.verify(store).holds
    ca.index(ca.load("demo"), "world:6:test", store)
    assert not (store / "run.json").exists()  # the last who wrote was no command


def test_a_folder_that_python_writes_again_keeps_no_record_of_another_run(tmp_path: Path) -> None:
    out = tmp_path / "report"
    explained(out)
    ca.explain(ca.load("demo"), [PICTURE], ["a bird"]).save(out)
    assert not (out / "run.json").exists()


def test_a_file_of_that_name_that_is_not_ours_stays(tmp_path: Path) -> None:
    out = tmp_path / "report"
    explained(out)
    (out / "run.json").write_text("my own notes")
    explained(out)
    assert (out / "run.json").read_text() == "my own notes"


def test_the_log_tells_steps_notes_and_the_end(tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    listening = [*logging.getLogger("clip_anatomy").handlers]
    assert explained(tmp_path / "report", "--log", str(file)) == 0
    assert main(["explain", "no-such.jpg", "--text", "a bird", f"--log={file}"]) == 2
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["message"] for line in lines].count("began") == 2
    assert {"opened", "wrote", "ended"} <= {line["message"] for line in lines}
    assert any(line.get("total") for line in lines)
    assert lines[-2]["level"] == "error"
    assert "no-such.jpg" in lines[-2]["message"]
    assert all({"time", "level", "message"} <= set(line) for line in lines)
    assert logging.getLogger("clip_anatomy").handlers == listening


def test_a_token_is_in_no_record(tmp_path: Path) -> None:
    for words in (["serve", "--token", "hush"], ["serve", "--token=hush"]):
        with run_record.recorded(words, tmp_path / "run.jsonl"):
            run_record.write(tmp_path)
    assert "hush" not in (tmp_path / "run.jsonl").read_text() + (tmp_path / "run.json").read_text()


@pytest.mark.parametrize("words", [["--log"], ["--log", "."]])
def test_a_log_that_cannot_be_written_is_one_sentence(words: list[str], capsys: Any) -> None:
    assert main(["bench", "--list", *words]) == 2
    assert "Type" in capsys.readouterr().err


def test_python_listens_with_handlers_of_its_own(caplog: Any) -> None:
    with caplog.at_level(logging.DEBUG, logger="clip_anatomy"):
        silent("reading", 3, 10)
        with shown() as progress:
            progress("reading", 0, 10)
            progress("reading", 10, 10)
    assert [record.fields["done"] for record in caplog.records] == [3, 0, 10]
    assert set(caplog.records[-1].fields) == {"done", "total", "per_second", "seconds_left"}
