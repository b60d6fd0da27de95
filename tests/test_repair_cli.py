"""`clip-anatomy repair`: one screen, a figure, an edit that works, answers at the prompt, Ctrl-C, bad input."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image
from worlds import BALANCED, balanced

import clip_anatomy as ca
from clip_anatomy.cli.main import main
from clip_anatomy.edits.edit import Edit
from clip_anatomy.edits.edited_clip import EditedClip


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    torch.set_num_threads(1)
    return balanced(tmp_path_factory)


def answered(monkeypatch, *lines):
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


@pytest.fixture(scope="module")
def repaired(store, tmp_path_factory):
    """One run with everything: screen, notes, folder."""
    import contextlib

    out = tmp_path_factory.mktemp("out") / "repair"
    screen, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(said):
        code = main(["repair", str(store), "--yes", "--out", str(out)])
    return code, screen.getvalue(), said.getvalue(), out


def test_the_whole_story_is_on_one_screen(repaired):
    code, screen, said, _ = repaired
    assert code == 0
    assert len(screen.splitlines()) <= 48
    assert max(len(line.rstrip()) for line in screen.splitlines()) <= 100
    for word in (
        "BEFORE",
        "FOUND",
        "SELECT",
        "AFTER",
        "worst group",
        "average (shape)",
        "role=background",
        "by group accuracy",
    ):
        assert word in screen, word
    assert re.search(r"●\s+7\.[03]\s+background \d+%", screen)
    assert re.search(r"worst group .* \d+\.\d %  .*\+\d+\.\d", screen)
    assert "clip-anatomy apply" in said


def test_the_folder_holds_edit_figure_and_json(repaired):
    _, screen, _, out = repaired
    told = json.loads((out / "repair.json").read_text())
    assert told["schema"] == "clip-anatomy/repair/2"
    assert told["worst_group"]["change"] > 0.1
    low, high = told["worst_group"]["change_interval"]
    assert low < told["worst_group"]["change"] < high
    assert f"{100 * told['average']['after']:.1f} %" in screen
    assert {one["strategy"] for one in told["candidates"]} >= {
        "role=background",
        "by name",
        "by variance",
        "by group accuracy",
    }
    assert sum(one["suggested"] for one in told["candidates"]) == 1
    with Image.open(out / "repair.png") as picture:
        assert picture.width > 1200
        assert picture.height > 700
    assert not list(out.parent.glob(".*partial-*"))


def test_the_saved_edit_does_what_the_screen_said(repaired, store):
    _, _, _, out = repaired
    told = json.loads((out / "repair.json").read_text())
    clip = ca.load("demo")
    edit = Edit.load(out / "edit.json")
    assert edit.parts.spec == told["ablated"]
    from clip_anatomy.data.open_dataset import open_dataset
    from clip_anatomy.studies.image_split import halves_of
    from clip_anatomy.studies.repair_task import repair_task

    opened = ca.Store.open(store)
    halves = halves_of(opened)
    task = repair_task(opened, clip, halves.validation)
    rows = halves.test
    labels = task.labels(opened, rows)[0]
    here = rows[(labels >= 0).numpy()]
    source, known = open_dataset(BALANCED), opened.rows()
    pixels = clip.pixels([source.fetch(known[at].path) for at in here.tolist()])
    guess = (EditedClip(clip, edit).encode_image(pixels) @ task.main.texts.T).argmax(1)
    right = float((guess == labels[labels >= 0]).float().mean())
    assert right == pytest.approx(told["average"]["after"], abs=0.011)  # float16 in the store: two images may tip
    assert told["average"]["images"] == len(here)


def test_answers_at_the_prompt_choose(store, tmp_path, monkeypatch, capsys):
    answered(monkeypatch, "9.9", "mlp=2 along cue", "7.0,7.3 along cue", "n", "7.0,7.3+mlp=2", "y")
    assert main(["repair", str(store), "--out", str(tmp_path / "r")]) == 0
    said = capsys.readouterr().err
    assert "heads that do not exist: 9.9" in said
    assert "Ablate which? Enter takes" in said
    assert "only heads can be ablated along a cue" in said
    assert said.count("on the pictures to choose on average") == 2
    assert json.loads((tmp_path / "r" / "repair.json").read_text())["ablated"] == "7.0,7.3+mlp=2"


def test_without_an_answer_nothing_is_written(store, tmp_path, monkeypatch, capsys):
    answered(monkeypatch)
    assert main(["repair", str(store), "--out", str(tmp_path / "r")]) == 2
    assert "nobody answered. Type --yes" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_ctrl_c_at_the_prompt_leaves_nothing(store, tmp_path, monkeypatch, capsys):
    class Stopped:
        def readline(self):
            raise KeyboardInterrupt

    monkeypatch.setattr("sys.stdin", Stopped())
    assert main(["repair", str(store), "--out", str(tmp_path / "r")]) == 130
    assert "stopped; nothing half-written" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_nothing_many_groups_and_long_names_can_be_drawn(store):
    from dataclasses import replace

    from clip_anatomy.edits.selection import Selection
    from clip_anatomy.report import repair_terminal as screen
    from clip_anatomy.report.repair_figure import draw_repair, lines_of
    from clip_anatomy.studies.find_cue import find_cue
    from clip_anatomy.studies.image_split import halves_of
    from clip_anatomy.studies.repair_effect import measure_repair
    from clip_anatomy.studies.repair_task import TaskSettings

    opened = ca.Store.open(store)
    found = find_cue(opened, ca.load("demo", parity=False), TaskSettings(also=[]), halves_of(opened, most=120))
    nothing = measure_repair(opened, found, Selection())
    assert nothing.worst.change == 0
    many = replace(
        nothing,
        groups=tuple(replace(nothing.groups[0], name=f"a group of a very long name {n}" * 3) for n in range(40)),
    )
    assert lines_of(found, many)[0][0] == "“Which shape?”, in the 16 worst of 40 groups"
    for told in (nothing, many):
        assert draw_repair(found, told, "a store").startswith(b"\x89PNG")
        shown = screen.console()
        with shown.capture() as text:
            for piece in screen.after(found, told):
                shown.print(piece)
        assert max(map(len, text.get().splitlines())) <= 100


def test_pictures_are_drawn_with_characters_at_a_terminal_with_colours(store):
    from rich.console import Console

    from clip_anatomy.report import repair_interactive as prompt
    from clip_anatomy.studies.find_cue import find_cue
    from clip_anatomy.studies.image_split import halves_of
    from clip_anatomy.studies.repair_task import TaskSettings

    opened = ca.Store.open(store)
    found = find_cue(opened, ca.load("demo", parity=False), TaskSettings(also=[]), halves_of(opened, most=120))
    page = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=100)
    for piece in prompt.pictures(opened, found, page):
        page.print(piece)
    drawn = page.file.getvalue()
    assert drawn.count("▀") >= 6 * 2 * prompt.WIDE * prompt.TALL
    assert "“sky”" in drawn
    assert not list(prompt.pictures(opened, found, Console(file=io.StringIO())))


def test_select_and_json_do_not_ask(store, tmp_path, capsys):
    words = ["repair", str(store), "--select", "role=background", "--json", "--out", str(tmp_path / "r"), "--cost", "5"]
    assert main(words) == 0
    shown = capsys.readouterr()
    told = json.loads(shown.out)
    assert told["select"] == "role=background"
    assert {(7, 0), (7, 3), (2, 0)} <= {tuple(pair) for pair in told["selection"]["heads"]}
    assert told == json.loads((tmp_path / "r" / "repair.json").read_text())


def test_a_world_is_indexed_first_and_only_once(tmp_path, capsys):
    words = ["repair", "world:160", "--label", "count", "--yes", "--out", str(tmp_path / "r")]
    assert main(words) == 0
    kept = tmp_path / "r" / "world-160-val-balanced"
    assert len(ca.Store.open(kept)) == 160
    assert ca.Store.open(kept).manifest.keep == ("heads", "mlps")
    stamp = sorted((path.name, path.stat().st_mtime_ns) for path in kept.glob("blocks/*"))
    capsys.readouterr()
    assert main([*words, "--select", "7.0"]) == 0
    assert "digit disagrees" in capsys.readouterr().out
    assert len(list((tmp_path / "r").glob("edit-*.safetensors"))) == 1  # the means of the edit before are gone
    assert stamp == sorted((path.name, path.stat().st_mtime_ns) for path in kept.glob("blocks/*"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--select", "8.0"], "heads that do not exist: 8.0. Type LAYER.HEAD with a layer of 0-7"),
        (["--select", "role=nothing"], "no head of this atlas has the role 'nothing'. Type one of"),
        (["--select", "input-embedding"], "a repair ablates heads and MLPs"),
        (["--classes", "bird"], "two or more are needed. Type --classes"),
        (["--classes", "bird, fish"], "match no class name"),
        (["--group", "nothing"], "in no groups, and no cue is suspected. Type --group COLUMN"),
        (["--cost", "-1"], "type --cost 2"),
        (["--atlas", "no/such"], "does not exist"),
    ],
)
def test_bad_input_is_named(store, tmp_path, capsys, words, said):
    assert main(["repair", str(store), "--yes", "--out", str(tmp_path / "r"), *words]) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert not list(tmp_path.iterdir())


def test_no_store_and_a_bad_world_are_named(tmp_path, capsys):
    assert main(["repair", str(tmp_path / "none"), "--yes", "--out", str(tmp_path / "r")]) == 2
    assert "is no store. Make one: clip-anatomy index" in capsys.readouterr().err
    assert main(["repair", "world:many", "--yes", "--out", str(tmp_path / "r")]) == 2
    assert "is no world" in capsys.readouterr().err


def test_being_stopped_while_the_world_is_drawn_keeps_what_is_done(tmp_path):
    """Ctrl-C during the index: the store goes on where it was, the folder holds no half result."""
    out = tmp_path / "r"
    words = [sys.executable, "-m", "clip_anatomy.cli.main", "repair", "world:6000", "--yes", "--out", str(out)]
    run = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    store = out / "world-6000-val-balanced" / "store.json"
    limit = time.monotonic() + 60
    while not store.exists() and run.poll() is None and time.monotonic() < limit:
        time.sleep(0.05)
    time.sleep(1.0)
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 130, said
    assert not (out / "repair.json").exists()
    assert not list(tmp_path.glob(".*partial-*"))
    assert len(ca.Store.open(store.parent)) < 6000
