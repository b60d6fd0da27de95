"""The command line of atlases."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from atlases import IMAGES, VERB, demo, one_thread, server

from clip_anatomy.cli import main as cli
from clip_anatomy.loading.clip import Clip
from clip_anatomy.naming.atlas import Atlas

__all__ = ["demo", "one_thread", "server"]  # fixtures


# ---- the command line


@pytest.fixture
def main(
    demo: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Any:
    monkeypatch.setitem(cli.VERBS, "atlas", VERB)
    monkeypatch.setenv("CLIP_ANATOMY_CACHE", str(demo.texts.parent))
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        code = cli.main(["atlas", *words])
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


def test_the_verb_writes_pages_json_and_parquet(main: Any, demo: SimpleNamespace, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    code, out, err = main(str(demo.store.path), "--texts", "8", "--images", "2", "--resamples", "5")
    assert code == 0
    assert "48 heads over 300 images" in out
    assert "named heads that one attribute drives" in out
    assert "atlas: clip-anatomy-atlas/index.html" in err
    folder = tmp_path / "clip-anatomy-atlas"
    assert sorted(file.name for file in folder.iterdir()) == [
        "atlas.json",
        "atlas.parquet",
        "heads",
        "images",
        "index.html",
        "run.json",
    ]
    found = Atlas.load(folder)
    table = pq.read_table(folder / "atlas.parquet")
    assert table.num_rows == sum(len(head.texts) for head in found.heads) == 48 * 8
    assert table.column("text").to_pylist() == [text.text for head in found.heads for text in head.texts]
    assert table.column("gain").to_pylist() == [text.gain for head in found.heads for text in head.texts]
    assert table.schema.metadata[b"digest"].decode() == demo.clip.digest
    assert len(list((folder / "heads").iterdir())) == 48
    used = {seen.row for head in found.heads for text in head.texts for seen in (*text.top_images, *text.bottom_images)}
    assert {int(file.stem) for file in (folder / "images").iterdir()} == used
    (folder / "mine.txt").write_text("stays")
    assert main(str(demo.store.path), "--texts", "3", "--images", "1", "--resamples", "0")[0] == 0
    assert (folder / "mine.txt").read_text() == "stays"
    assert len(Atlas.load(folder).heads[0].texts) == 3
    assert len(list((folder / "images").iterdir())) < len(used)
    assert not list(tmp_path.rglob("*partial*"))


def test_json_goes_to_stdout_and_nothing_is_written(main: Any, demo: SimpleNamespace, tmp_path: Path) -> None:
    code, out, err = main(str(demo.store.path), "--json", "--texts", "2", "--resamples", "0")
    assert code == 0
    assert Atlas.of_dict(json.loads(out)).images == IMAGES
    assert list(tmp_path.iterdir()) == []
    assert "note: The bundled demo model knows only a small drawn world" in err


def test_bad_input_is_one_line_with_what_to_type(main: Any, demo: SimpleNamespace, tmp_path: Path) -> None:
    store = str(demo.store.path)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("my own page")
    (tmp_path / "empty.txt").write_text("\n")
    for words, message in (
        (["nowhere"], "nowhere is no store. Make one: clip-anatomy index SOURCE nowhere"),
        ([store, "--pool", "nothing.txt"], "nothing.txt does not exist"),
        ([store, "--pool", "empty.txt"], "holds no description"),
        ([store, "--llm", "http://127.0.0.1:9/v1"], "Type: --llm-model NAME"),
        ([store, "--task", "counting"], "Type: --llm http://127.0.0.1:8000/v1"),
        ([store, "--llm", "mysite", "--llm-model", "x"], "is no address of a language model"),
        ([store, "--texts", "0"], "type --texts 20"),
        ([store, "--truth", "moon"], "tells images apart"),
        ([store, "--out", "site"], "Type another folder: --out NAME"),
        ([store, "--out", "empty.txt"], "is a file; a folder was expected"),
        ([store, "--texts", "many"], "--help"),
    ):
        code, out, err = main(*words)
        assert code == 2, (words, err)
        assert message in err
        assert "Traceback" not in err
        assert out == ""
    assert (tmp_path / "site" / "index.html").read_text() == "my own page"
    assert not (tmp_path / "clip-anatomy-atlas").exists()


def test_ctrl_c_leaves_the_old_atlas_and_nothing_else(demo: SimpleNamespace, tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from clip_anatomy.cli import main as cli\n"
        f"cli.VERBS['atlas'] = {VERB!r}\n"
        "import clip_anatomy.report.thumbnails as thumbs\n"
        "make = thumbs.small\n"
        "def slow(*a):\n print('working', file=sys.stderr, flush=True); time.sleep(0.05); return make(*a)\n"
        "thumbs.small = slow\n"
        "sys.exit(cli.main())\n"
    )
    environment = {**os.environ, "CLIP_ANATOMY_CACHE": str(demo.texts.parent), "OMP_NUM_THREADS": "1"}
    words = ["atlas", str(demo.store.path), "--out", str(tmp_path / "out"), "--texts", "4", "--resamples", "0"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "atlas.json").write_text('{"schema": "clip-anatomy/atlas/3"}')
    with subprocess.Popen(
        [sys.executable, "-c", code, *words], stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
    ) as process:
        assert process.stderr is not None
        while "working" not in process.stderr.readline():
            assert process.poll() is None
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["atlas.json"]
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_the_model_may_be_named_anew(main: Any, demo: SimpleNamespace, tmp_path: Path) -> None:
    assert isinstance(demo.clip, Clip)
    code, _, err = main(str(demo.store.path), "--model", "nothing-like-it")
    assert code == 2
    assert "nothing-like-it" in err
