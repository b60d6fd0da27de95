"""`clip-anatomy demo`: the bundled model explains its own pictures and somebody's, and does not pretend."""

import json
from pathlib import Path

import numpy as np
from test_cli import Main, main, photo, typed, without_progress

__all__ = ["main", "photo"]  # fixtures


def test_the_real_demo_explains_its_world_and_a_photograph_and_does_not_pretend(photo: str, tmp_path: Path) -> None:
    done = typed("demo", photo, "--text", "a zebra", "--text", "a red circle", cwd=tmp_path)
    printed, err, out = done.stdout, done.stderr, tmp_path / "clip-anatomy-demo"
    assert done.returncode == 0, err
    assert err.splitlines()[-1] == "report: clip-anatomy-demo/index.html"
    assert len(without_progress(err)) == 3  # quiet in a pipe: two notes and the place of the report
    held = json.loads((out / "explain.json").read_text())
    assert len(held["images"]) >= 5
    assert held["images"][-1]["image"] == photo
    assert "photo.png" in printed
    report = (out / "index.html").read_text()
    assert "In truth: a" in report
    assert len(report) < 1_000_000
    for note in ("The bundled demo model knows only a small drawn world", "This model does not know: zebra."):
        assert note in err
        assert note in report
    assert held["notes"][0].startswith("The bundled demo model knows only")
    assert held["texts"][0]["notes"][0].startswith("This model does not know: zebra.")
    assert held["texts"][1]["notes"] == []


def test_demo_describes_its_own_pictures_in_words_that_it_knows(main: Main) -> None:
    code, out, err = main("demo", "--json")
    assert (code, err) == (0, "")
    held = json.loads(out)
    assert len(held["texts"]) == len(held["images"]) >= 5
    assert all(text["notes"] == [] for text in held["texts"])
    best = [max(image["texts"], key=lambda t: t["cosine"])["text"] in image["caption"] for image in held["images"]]
    assert np.mean(best) >= 0.8, held["images"]
