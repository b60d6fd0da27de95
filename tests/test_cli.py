"""The command line as a person meets it: messages, exit codes, files, and nothing half-written."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from safetensors.torch import save_file

from clip_anatomy.cli import main as cli
from clip_anatomy.errors import MissingExtra
from clip_anatomy.report import figures
from clip_anatomy.split import explanation as run

ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
Main = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small matrices: a second thread costs more than it gives, and on a busy machine far more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny random CLIP in open_clip's saved format, with CLIP's own vocabulary."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    folder.mkdir()
    text = {"vocab_size": 49408, "context_length": 77}
    saved = tiny.open_clip_model(text=text)
    save_file({k: v.contiguous() for k, v in saved.state_dict().items()}, folder / "open_clip_model.safetensors")
    vision = {"image_size": 32, "patch_size": 8, "layers": 2, "width": 16, "head_width": 8}
    config = {
        "embed_dim": 12,
        "quick_gelu": False,
        "vision_cfg": vision,
        "text_cfg": {**text, "width": 16, "heads": 2, "layers": 2},
    }
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    return str(folder)


@pytest.fixture
def photo(tmp_path: Path) -> str:
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)).save(path)
    return str(path)


@pytest.fixture
def main(capsys: pytest.CaptureFixture[str]) -> Main:
    def call(*words: str) -> tuple[int, str, str]:
        code = cli.main(words)
        out, err = capsys.readouterr()
        return code, out, err

    return call


def typed(*words: str, **more: object) -> "subprocess.CompletedProcess[str]":
    """The real command in a process of its own."""
    command = [sys.executable, "-m", "clip_anatomy.cli.main", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=ONE_THREAD, **more)  # pyright: ignore


PROGRESS = re.compile(r"(looking at pictures|drawing|writing)\b")  # lines of a log, one in ten seconds of work


def without_progress(err: str) -> list[str]:
    return [line for line in err.splitlines() if not PROGRESS.match(line)]


# --- help ---


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys, time; from clip_anatomy.cli.main import main; code = main(['--help']); "
        "heavy = {'torch', 'numpy', 'matplotlib', 'open_clip', 'PIL', 'transformers'} & set(sys.modules); "
        "print(code, sorted(heavy), time.process_time(), file=sys.stderr)"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    seconds = min(float(r.stderr.split()[-1]) for r in runs)
    bare = "import sys, time; import cyclopts; print(time.process_time(), file=sys.stderr)"
    least = min(
        float(
            subprocess.run([sys.executable, "-c", bare], capture_output=True, text=True, check=True).stderr.split()[-1]
        )
        for _ in runs
    )
    print(f"clip-anatomy --help: {seconds:.3f} s of CPU time, importing cyclopts alone {least:.3f} s")
    assert runs[0].stderr.startswith("0 [] ")
    assert seconds < least, "help of all verbs costs more than the import of the library that reads options"
    for verb, (_, answers) in cli.VERBS.items():
        assert verb in runs[0].stdout
        assert answers.split()[0] in runs[0].stdout


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_explains_all_its_options(verb: str, main: Main) -> None:
    code, out, _ = main(verb, "--help")
    assert code == 0
    assert f"clip-anatomy {verb}" in out
    assert "--json" in out or verb == "serve"


def test_help_on_a_verb_is_its_docstring_with_its_examples(main: Main) -> None:
    _, out, _ = main("heatmap", "--help")
    assert 'clip-anatomy heatmap photo.jpg --text "a dog" --text "a cat"\n' in out
    assert " Writes into a folder" not in out  # a paragraph of its own
    listed = cli.VERBS["heatmap"][1]
    assert listed in main("--help")[1]


def test_the_version_is_printed(main: Main) -> None:
    from clip_anatomy import __version__

    assert main("--version")[1].strip() == __version__


# --- explain ---


def test_explain_writes_report_figures_and_numbers(main: Main, model: str, photo: str, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    code, printed, err = main(
        "explain", photo, "--text", "a dog", "--text", "a cat", "--model", model, "--out", str(out)
    )
    assert code == 0
    assert "a dog" in printed
    assert "cosine" in printed
    assert f"report: {out / 'index.html'}" in err
    held = json.loads((out / "explain.json").read_text())
    assert sorted(p.name for p in out.iterdir()) == sorted([*held["files"], "explain.json", "run.json"])
    assert [name for name in held["files"] if name.endswith(".png")] == [
        "000-photo-00-a-dog.png",
        "000-photo-01-a-cat.png",
    ]
    for name in held["files"]:
        assert (out / name).stat().st_size > 1_000
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["out"]  # no staging folder is left


def test_json_alone_is_all_of_stdout_and_equals_the_host_library(
    main: Main, model: str, photo: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(figures, "need_matplotlib", lambda: pytest.fail("--json alone needs no matplotlib"))
    code, printed, err = main("explain", photo, "-t", "a dog", "-t", "a cat", "-m", model, "--json")
    assert code == 0
    assert err == ""
    held = json.loads(printed)
    assert [p.name for p in tmp_path.iterdir()] == ["photo.png"]

    import open_clip

    theirs, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{model}")
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    with torch.no_grad():
        image = theirs.eval().encode_image(preprocess(Image.open(photo))[None], normalize=True)
        text = theirs.encode_text(tokenizer(["a dog", "a cat"]), normalize=True)
        probability = (theirs.logit_scale.exp() * image @ text.T).softmax(-1)
    for k, one in enumerate(held["images"][0]["texts"]):
        assert one["cosine"] == pytest.approx(float(image[0] @ text[k]), abs=1e-5)
        assert one["probability"] == pytest.approx(float(probability[0, k]), abs=1e-4)
        parts = np.sum(one["heads"]) + np.sum(one["mlps"]) + one["input_embedding"] + one["bias"]
        assert parts == pytest.approx(one["cosine"], abs=1e-5)
    assert held["model"]["proof"]["image"] <= 1e-5


def test_one_bad_picture_among_many_is_reported_and_the_others_are_done(
    main: Main, model: str, photo: str, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"not a picture")
    address = "https://example.com/a.jpg"
    words = ("explain", photo, str(broken), "missing.png", address, "--text", "x", "--model", model, "--json")
    code, out, err = main(*words)
    held = json.loads(out)
    assert code == 0
    assert len(held["images"]) == 1
    assert [f["image"] for f in held["failed"]] == [str(broken), "missing.png", address]
    assert "not read: missing.png: no such file" in err
    assert held["failed"][2]["error"].endswith("Type: --allow-urls")
    assert main(*words, "--strict")[0] == 1


def test_no_good_picture_at_all_is_an_error_and_writes_nothing(main: Main, model: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, printed, err = main("explain", "a.png", "b.png", "--text", "x", "--model", model, "--out", str(out))
    assert (code, printed) == (2, "")
    assert "none of the 2 pictures could be read" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["explain", "--text", "x"], "no picture was given. Type: clip-anatomy explain photo.jpg"),
        (["explain", "PHOTO"], "no text was given. Type what to look for: --text"),
        (["explain", "PHOTO", "--text", ""], "text 1 is empty. Type what to look for"),
        (
            ["explain", "PHOTO", "--text", "x", "--model", "nonsense"],
            "model 'nonsense' is not known. Type one of: demo",
        ),
        (["explain", "PHOTO", "--text", "x", "--device", "gpu9"], "device 'gpu9' is not known. Type one of"),
        (["explain", "PHOTO", "--text", "x", "--model", "open_clip:ViT-B-32"], "or add --weights FILE"),
        (["explain", "https://example.com/a.jpg", "--text", "x"], "Type: --allow-urls"),
        (["explain", "PHOTO", "--text"], "--text"),
        (["explain", "PHOTO", "--txt", "x"], "Type: clip-anatomy explain --help"),
        (["xplain"], "Type: clip-anatomy --help"),
        (["check", "missing/model.pt"], "there is no file or folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(  # noqa: PLR0917
    words: list[str], expected: str, main: Main, model: str, photo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [photo if w == "PHOTO" else w for w in words]
    if words[0] == "explain" and "--model" not in words:
        words += ["--model", model]
    code, out, err = main(*words)
    assert (code, out) == (2, "")
    assert err.startswith("clip-anatomy: error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert expected in err
    assert [p.name for p in tmp_path.iterdir()] == ["photo.png"]


def test_debug_shows_where(main: Main, photo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from clip_anatomy.errors import BadSpec

    with pytest.raises(BadSpec):
        main("explain", photo, "--text", "x", "--model", "nonsense", "--json", "--debug")
    monkeypatch.setenv("CLIP_ANATOMY_DEBUG", "1")
    with pytest.raises(BadSpec):
        main("explain", photo, "--text", "x", "--model", "nonsense", "--json")


def test_a_defect_of_ours_is_called_one(main: Main, monkeypatch: pytest.MonkeyPatch, model: str, photo: str) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr(run, "explain", broken)
    code, _, err = main("explain", photo, "--text", "x", "--model", model, "--json")
    assert code == 3
    assert err == "clip-anatomy: a defect of clip-anatomy: RuntimeError: boom. To see where, add --debug\n"


def test_long_and_foreign_texts_are_answered_with_a_note(main: Main, model: str, photo: str) -> None:
    code, out, err = main("explain", photo, "-t", "word " * 10_000, "-t", "一只红色的鸟", "-m", model, "--json")
    assert code == 0
    assert "Only the first 75 of its 10,000 words were read" in err
    assert "not in Latin letters" in err
    first, second = json.loads(out)["texts"]
    assert first["notes"][0].startswith("Only the first 75")
    assert second["text"] == "一只红色的鸟"


# --- output ---


def test_output_that_cannot_be_written_is_said_before_any_work(
    main: Main, photo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "explain", lambda *_, **__: pytest.fail("work had begun"))
    for out in (f"{photo}/inside", photo, str(tmp_path / "x\0y"), "/proc/clip-anatomy"):
        code, _, err = main("explain", photo, "--text", "x", "--model", "never/opened.pt", "--out", out)
        assert code == 2, out
        assert "Type" in err
        assert "--out" in err


def test_missing_matplotlib_is_said_before_any_work(
    main: Main, photo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtra):
        figures.need_matplotlib()
    code, _, err = main("explain", photo, "--text", "x", "--model", "never/opened.pt", "--out", str(tmp_path / "out"))
    assert code == 2
    assert "pip install 'clip-anatomy[figures]'" in err
    assert not (tmp_path / "out").exists()


def test_a_report_of_ours_is_replaced_and_other_files_stay(main: Main, model: str, photo: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("explain", photo, "--text", "a dog", "--model", model, "--out", str(out))
    assert main(*words)[0] == 0
    (out / "mine.txt").write_text("keep me")
    before = (out / "index.html").stat().st_ino
    assert main(*words)[0] == 0
    assert (out / "mine.txt").read_text() == "keep me"
    assert (out / "index.html").stat().st_ino != before
    assert not [p for p in (*out.iterdir(), *tmp_path.iterdir()) if "partial" in p.name]


def test_a_report_of_somebody_else_is_left_alone(main: Main, model: str, photo: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "index.html").write_text("theirs")
    code, _, err = main("explain", photo, "--text", "x", "--model", model, "--out", str(out))
    assert code == 2
    assert "was not written by clip-anatomy" in err
    assert (out / "index.html").read_text() == "theirs"


# --- check ---


def test_check_proves_the_model(main: Main, model: str) -> None:
    code, out, err = main("check", model, "--json")
    held = json.loads(out)
    assert (code, err) == (0, "")
    assert held["holds"]
    assert len(held["checks"]) == 18  # embeddings exactly and in float32, pixels, ids, three sums of each kind
    assert {(c["tower"], c["convention"]) for c in held["checks"]} == {
        (tower, how) for tower in ("image", "text") for how in ("", "centered", "official")
    }
    exact = [c for c in held["checks"] if c["claim"].startswith("embedding = open_clip")]
    assert [c["tower"] for c in exact] == ["image", "text"]
    inputs = {c["claim"].split(" = ")[0]: (c["error"], c["allowed"]) for c in held["checks"] if "= open" in c["claim"]}
    assert inputs == {**inputs, "pixels": (0, 0.05), "token ids": (0, 0)}
    sums = [c for c in held["checks"] if "= open" not in c["claim"]]
    assert all(c["error"] <= c["allowed"] == 1e-12 for c in exact)
    assert all(c["error"] <= c["allowed"] == 1e-5 for c in sums)


def test_check_fails_when_our_forward_is_not_the_hosts(main: Main, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is read as QuickGELU although it is not: every claim about the host's embedding must fall."""
    from clip_anatomy.loading import open_clip_towers

    monkeypatch.setattr(open_clip_towers, "_activation", lambda module: "quick_gelu")
    code, out, err = main("check", model)
    assert code == 1
    assert "NO" in out
    assert "does not hold" in err
    assert "activation gelu" in err
    code, out, _ = main("check", model, "--json")
    failed = {c["claim"] for c in json.loads(out)["checks"] if not c["holds"]}
    assert "parts sum to the embedding" in failed
    assert "tokens sum to their heads" not in failed


# --- the real command ---


@pytest.mark.parametrize(
    ("asked", "code", "says"),
    [(signal.SIGINT, 130, "stopped"), (signal.SIGTERM, 143, "ended")],
    ids=["Ctrl-C", "SIGTERM"],
)
def test_stopping_leaves_nothing_half_written(
    asked: signal.Signals, code: int, says: str, photo: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "clip_anatomy.cli.main", "explain", *[photo] * 200, "--pictures", "--out", "out"]
    command += [word for k in range(5) for word in ("--text", f"a red circle and {k}")]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=tmp_path, stderr=pipe, stdout=pipe, text=True, env=ONE_THREAD)
    end = time.monotonic() + 90
    while time.monotonic() < end and not list(tmp_path.glob(".out.partial-*/*.png")):
        time.sleep(0.05)
    assert list(tmp_path.glob(".out.partial-*")), process.communicate(timeout=5)
    os.kill(process.pid, asked)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert (out, without_progress(err)) == ("", [f"clip-anatomy: {says}; nothing half-written"])
    assert [p.name for p in tmp_path.iterdir()] == ["photo.png"]
