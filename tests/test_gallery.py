"""The figures of the papers: each is short, draws on the bundled model, and is what docs/gallery.md shows."""

import shlex
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_docs import commands

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))
import gallery  # noqa: E402

PAGE = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
LONG = {"second_model", "through_later_heads", "segmentation_scores", "linear_probe", "several_labels"}
DRAWN = [pytest.param(name, marks=pytest.mark.slow if name in LONG else ()) for name in gallery.FIGURES]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def on() -> Iterator[Any]:
    with gallery.demo() as setting:
        yield setting


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_is_what_the_gallery_shows(name: str, on: Any) -> None:
    made = gallery.drawn(name, on)
    if isinstance(made, str):
        assert f"```text\n{made}\n```" in PAGE
        return
    shown = Image.open(ROOT / "docs" / "gallery" / f"{name}.png").convert("RGB")
    again = Image.open(BytesIO(gallery.small(made))).convert("RGB")
    assert again.size == shown.size
    assert np.abs(np.asarray(again, float) - np.asarray(shown, float)).mean() < 6  # fonts and palettes differ a little


@pytest.mark.parametrize("name", gallery.FIGURES)
def test_a_figure_is_twenty_lines_and_its_command_can_be_typed(name: str) -> None:
    what, command, code = gallery.code_of(name)
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    assert code in PAGE
    assert command in PAGE
    assert ": " in what
    if command.startswith("python "):
        gallery.options().parse_args(shlex.split(command)[2:])
    else:
        assert command in commands(ROOT / "docs" / "gallery.md")  # test_docs reads its verb and options


def test_the_pictures_are_small_and_none_is_left_over() -> None:
    pictures = {path.stem: path.stat().st_size for path in (ROOT / "docs" / "gallery").iterdir()}
    assert set(pictures) == {name for name in gallery.FIGURES if f"gallery/{name}.png" in PAGE}
    assert {path.stem for path in (ROOT / "examples" / "figures").glob("*.py")} == set(gallery.FIGURES)
    assert max(pictures.values()) <= 60_000
    assert sum(pictures.values()) <= 1_000_000
