"""Every option of every verb, as the application knows them, with values that no one means: an answer, or one sentence and exit code 2."""

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clip_anatomy as ca
from clip_anatomy.cli.main import VERBS, app, main
from clip_anatomy.loading.demo import examples

NUMBERS = ["nan", "-7", "99999999999999999999", "x"]
WORDS = ["", "grün 犬", "a\x1b[2J\x07b", "..", "binary.bin", "photos", "a=b,c:9-", "~$x"]
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
SEARCHING = {"--llm"}  # a language model that is asked for is asked


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with whatever a command may be about."""
    place = tmp_path_factory.mktemp("options")
    clip, bird = ca.load("demo"), examples()[0]
    ca.index(clip, "world:24:test:balanced", place / "store")
    ca.Edit.of(clip, "7.0", by="zero").save(place / "edit.json")
    np.save(place / "recordings.npy", np.random.default_rng(0).normal(size=(24, 2)))
    (place / "photos").mkdir()
    (place / "photos" / "bird.png").write_bytes(bird.read_bytes())
    (place / "binary.bin").write_bytes(bytes(range(256)) * 40)
    (place / "words.txt").write_text("a red circle\na blue star\nnight\n")
    return place


COMMANDS: dict[str, list[str]] = {
    "demo": [],
    "serve": ["nowhere"],
    "explain": ["photos", "-t", "a bird"],
    "heatmap": ["photos", "-t", "a bird"],
    "pairs": ["photos", "-t", "a bird"],
    "segment": ["photos", "-t", "a bird"],
    "refer": ["photos/bird.png", "the bird"],
    "check": [],
    "index": ["photos", "new"],
    "verify": ["store"],
    "search": ["store", "a bird", "-k", "2"],
    "atlas": ["store", "--pool", "words.txt", "-n", "1", "--images", "1", "--resamples", "0"],
    "concepts": ["photos", "--pool", "words.txt", "-n", "1"],
    "mutual": [
        "photos/bird.png",
        "-c",
        "bird, fish",
        "--descriptors",
        "words.txt",
        "--expected",
        "1",
        "--details",
        "1",
    ],
    "paths": ["photos", "store", "--layers", "6", "--pool", "words.txt", "--top", "1"],
    "ablate": ["store", "--select", "7.0", "--label", "shape"],
    "align": ["store", "recordings.npy", "--folds", "2", "--permutations", "2"],
    "apply": ["edit.json", "photos"],
    "export": ["edit.json"],
    "probe": ["store", "--last", "1", "--label", "shape", "--epochs", "1"],
    "repair": ["store", "--label", "shape", "--select", "7.0"],
    "bench": ["maps", "--pictures", "1", "--method", "raw"],
}


def options(verb: str) -> dict[str, Any]:
    """Option → its type, as the application knows them."""
    known = app()[verb].assemble_argument_collection()
    plain = ([n for n in one.names if n.startswith("--") and not n.startswith(("--no-", "--empty-"))] for one in known)
    return {names[0]: one.hint for one, names in zip(known, plain, strict=True) if names}


def tried(verb: str, option: str, value: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Type it, and return what is wrong with what came."""
    try:
        code = main([verb, *COMMANDS[verb], f"{option}={value}"])
    except SystemExit as ended:
        code = ended.code
    out, said = capsys.readouterr()
    typed = f"{verb} {option}={value!r}: "
    if code not in (0, 1, 2) or "Traceback" in said:
        return f"{typed}{code}: {said[-300:]}"
    if CONTROL.search(out + said):
        return f"{typed}control characters are printed"
    sentences = [line for line in said.splitlines() if line.startswith("clip-anatomy: error: ")]
    return f"{typed}{said[-300:]}" if code == 2 and len(sentences) != 1 else ""


def numeric(hint: Any) -> bool:
    return any(name in str(hint) for name in ("int", "float")) and "str" not in str(hint)


def test_every_verb_has_a_command() -> None:
    assert {*COMMANDS} == {*VERBS}
    assert all(options(verb) for verb in VERBS)


@pytest.mark.slow
def test_numbers_that_no_one_means_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    numbers = [(verb, name) for verb in VERBS for name, hint in options(verb).items() if numeric(hint)]
    assert len(numbers) > 40
    values = itertools.cycle(("nan", "99999999999999999999", "x", ""))
    wrong = [tried(*one, value, capsys) for one, value in zip(numbers[::4], values, strict=False)]
    assert "\n".join(filter(None, wrong)) == ""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("verb", VERBS)
def test_any_value_of_any_option_is_answered_or_named(
    verb: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    if verb != "serve":
        assert main([verb, *COMMANDS[verb]]) == 0, capsys.readouterr()
    wrong: list[str] = []
    for name, hint in options(verb).items():
        for value in NUMBERS if numeric(hint) else [*NUMBERS, *WORDS] if name not in SEARCHING else [""]:
            wrong.append(tried(verb, name, value, capsys))
    assert "\n".join(filter(None, wrong)) == ""
