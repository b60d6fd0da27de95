"""Saved maps carry their legend and keep the pixels of the overlay; texts of any script are written in a font that has their letters."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

import clip_anatomy as ca
from clip_anatomy.images import fonts
from clip_anatomy.loading.demo import examples
from clip_anatomy.report.contact_sheet import fit
from clip_anatomy.report.map_legend import LEAST, with_legend
from clip_anatomy.report.map_overlay import overlay, shades_of

pytestmark = pytest.mark.usefixtures("one_thread")
CLIP = ca.load("demo", parity=False)


def test_a_legend_leaves_the_overlay_as_it_is() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (400, 600, 3), np.uint8))
    shades = shades_of(ca.heatmap(CLIP, [picture], ["a bird"]))[0]
    drawn = overlay(picture, shades, 0)
    found = with_legend(drawn, shades, 0, "a bird", "signed")
    assert (found.width, found.height > 400) == (600, True)
    assert np.array_equal(np.asarray(found)[:400], np.asarray(drawn))
    strip = np.asarray(found)[400:].reshape(-1, 3).tolist()
    for colour in ([30, 100, 200], [224, 90, 0]):  # both ends of the scale, nearly
        assert min(sum(abs(a - b) for a, b in zip(colour, pixel, strict=True)) for pixel in strip) < 60


def test_every_saved_overlay_and_painting_has_one_and_small_ones_are_enlarged(tmp_path: Path) -> None:
    ca.heatmap(CLIP, examples()[:1], ["a bird"]).save(tmp_path / "maps")
    ca.segment(CLIP, examples()[:1], ["a bird", "the sky"]).save(tmp_path / "masks")
    for folder, pattern in (("maps", "000-*-00-*"), ("masks", "*painted*")):
        (path,) = (tmp_path / folder).glob(pattern)
        with Image.open(path) as found:
            assert found.width == LEAST == 5 * 64
            assert found.height > 320 + 30


def test_a_font_is_chosen_by_its_letters(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    own, greek = fonts.font_for(14.0, "Bär"), fonts.font_for(14.0, "Ωμέγα Москва")
    assert own.getname() != greek.getname() if hasattr(own, "getname") else greek is not own  # pyright: ignore
    draw = ImageDraw.Draw(Image.new("L", (300, 40)))
    assert fit(draw, "Ωμέγα", 300, 14)[0] == "Ωμέγα"
    assert fit(draw, "Ωμέγα " * 40, 100, 14)[0].endswith("...")


def test_families_of_many_scripts_come_in_order_and_are_few() -> None:
    installed = {
        "DejaVu Sans",
        "Noto Sans CJK JP",
        "WenQuanYi Micro Hei",
        "Comic Sans MS",
        "Unifont",
        "Noto Sans",
        "Arial",
    }
    assert fonts.known_families(installed) == ["Noto Sans CJK JP", "WenQuanYi Micro Hei", "Unifont", "Noto Sans"]
    assert fonts.known_families(set()) == fonts.known_families({"DejaVu Sans Light", "Noto Sans CJK JP Thin"}) == []


def test_figures_ask_for_an_installed_cjk_font(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib import rcParams
    from matplotlib.font_manager import FontEntry, fontManager

    from clip_anatomy.report.figures import canvas

    entry: Any = FontEntry(fname="x.ttc", name="Noto Sans CJK SC")
    monkeypatch.setattr(fontManager, "ttflist", [*fontManager.ttflist, entry])
    with canvas(1, 1):
        assert "Noto Sans CJK SC" in rcParams["font.family"]


def test_results_overlay_and_show(capsys: Any) -> None:
    maps = ca.heatmap(CLIP, examples()[:2], ["a bird", "the sky"])
    masks = ca.segment(CLIP, examples()[:1], ["a bird"])
    assert maps.overlay(1, "the sky").tobytes() == maps.overlay(1, 1).tobytes() != maps.overlay(1, 0).tobytes()
    assert masks.overlay().width == LEAST
    masks.show()
    assert capsys.readouterr().out.strip() == masks.summary().strip()


def test_reprs_are_short() -> None:
    parts = ca.decompose(CLIP, examples()[:2])
    found = ca.explain(CLIP, examples()[:1], ["a bird"])
    for one in (
        CLIP,
        CLIP.vision,
        parts,
        parts.toward(CLIP.encode_text(["a bird"])),
        found,
        found[0],
        ca.Means.of(CLIP, examples()[:2]),
    ):
        assert len(repr(one)) < 1000
    assert "heads=[8, 6, 1]" in repr(found[0])
