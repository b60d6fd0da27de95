"""The report as a reader gets it: one file, nothing from outside, every figure drawn, strange texts harmless."""

import base64
import re
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from pages import read
from PIL import Image
from torch import Tensor

import clip_anatomy as ca
from clip_anatomy.images.pixels import OPENAI_MEAN, OPENAI_STD, Preprocess
from clip_anatomy.loading.typed_texts import TypedText
from clip_anatomy.report import palette
from clip_anatomy.report.explain_figure import draw
from clip_anatomy.report.explain_page import ExplainedPicture, explain_page
from clip_anatomy.report.shown_picture import ShownPicture, view_of
from clip_anatomy.split.picture_explanation import PictureExplanation, explain_pixels, strongest_region

CLIP = ca.load(tiny.open_clip_model(layers=3, heads=2))
IDS = torch.tensor([[1, 5, 9, 99], [1, 7, 99, 0], [1, 50, 60, 99]])
NASTY = ("<script>alert(1)</script> & \"'", "$\\frac{1}{2}$ \\n", "红色的鸟 طائر \U0001f426")


def picture(width: int = 60, height: int = 40, resize: str = "shortest") -> ShownPicture:
    pre = Preprocess(size=(32, 32), mean=OPENAI_MEAN, std=OPENAI_STD, resize=resize)  # pyright: ignore[reportArgumentType]
    values = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    return view_of(Image.fromarray(values), "a<b>.png", pre.geometry(width, height))


def answered(texts: int = 3) -> PictureExplanation:
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return explain_pixels(CLIP, pixels, CLIP.encode_text(IDS[:texts]))[0]


def page(texts: int = 3, **story: object) -> str:
    questions = [TypedText(NASTY[k], ("a note",) if k == 2 else ()) for k in range(texts)]
    each = ExplainedPicture(picture(), answered(texts), "In truth: <b>x</b>.")
    return explain_page("Title", [each], questions, [("model", "<i>")], **story)  # pyright: ignore[reportArgumentType]


def test_the_page_loads_nothing_from_outside() -> None:
    html = page()
    reader = read(html)
    assert reader.open == []
    assert all(address.startswith("data:image/") for address in reader.loads)
    assert not re.search(r"https?://|@import|url\((?!data:)", html)
    assert "link" not in reader.tags
    assert reader.tags.count("script") == 1


def test_strange_texts_and_names_stay_texts() -> None:
    html = page(failed=[("<img src=x>.jpg", "it's <broken>")], notes=["<u>"])
    assert "<script>alert" not in html
    text = read(html).text
    for expected in (*NASTY, "In truth: <b>x</b>.", "<img src=x>.jpg", "it's <broken>", "<u>", "a note"):
        assert expected in text


def test_the_picture_is_held_once_however_many_texts_there_are() -> None:
    assert page().count(picture().data_uri()) == 1


def test_every_number_under_the_pointer_is_the_answers() -> None:
    found = answered()
    html = page()
    held = re.findall(r'data-of="patch" data-grid="4 4" data-v="([^"]+)"', html)
    assert len(held) == 6  # three texts, alone and against the others
    wanted = [found.patches[..., k] for k in range(3)] + [found.contrast().patches[..., k] for k in range(3)]
    numbers = [np.array(v.split(), float) / 1e6 for v in held]
    for values in wanted:
        assert any(np.allclose(n, values.flatten().numpy(), atol=1e-6) for n in numbers)
    assert len(re.findall(r'data-of="head" data-grid="3 2"', html)) == 6
    assert len(re.findall(r'data-of="layer" data-grid="6 1"', html)) == 6


def test_one_text_has_no_switch_and_says_why() -> None:
    text = read(page(texts=1)).text
    assert "Only one text was given" in text
    assert "against the other texts" not in text
    assert "share among these texts" not in text


def test_texts_stand_in_the_order_of_their_cosines() -> None:
    order = answered().cosine.argsort(descending=True).tolist()
    text = read(page()).text
    places = [text.index(NASTY[k], text.index("cosine", text.index("a<b>.png"))) for k in order]
    assert places == sorted(places)


@pytest.mark.parametrize("size", [(60, 40), (40, 60), (32, 32), (500, 3), (1, 1)])
@pytest.mark.parametrize("texts", [1, 3])
def test_figures_of_any_shape_are_drawn(size: tuple[int, int], texts: int) -> None:
    data = draw(picture(*size), answered(texts), 0, NASTY[texts - 1], "caption $x$")
    image = Image.open(BytesIO(data))
    assert image.format == "PNG"
    assert image.size[0] > 1200
    assert len(np.unique(np.asarray(image.convert("L")))) > 20


def test_padding_is_drawn_too() -> None:
    assert draw(picture(resize="longest"), answered(), 0, "x", "y")[:4] == b"\x89PNG"


def test_the_map_lies_where_its_patches_are() -> None:
    """Only one patch speaks; the figure must be orange there and nowhere else on the map."""
    found = answered(1)
    patches = torch.zeros(4, 4, 1)
    patches[1, 2] = 0.5
    parts = {**vars(found), "patches": patches}
    white = view_of(
        Image.new("RGB", (32, 32), "white"), "x", Preprocess((32, 32), OPENAI_MEAN, OPENAI_STD).geometry(32, 32)
    )
    pixels = np.asarray(
        Image.open(BytesIO(draw(white, PictureExplanation(**parts), 0, "x", "y"))).convert("RGB")
    ).astype(int)
    panel = pixels[160:520, 400:830]  # the map's panel alone
    orange = (panel[..., 0] - panel[..., 2]) > 100
    rows, cols = np.nonzero(orange)
    high, wide = np.ptp(rows) + 1, np.ptp(cols) + 1
    assert orange.sum() > 0.97 * high * wide  # one rectangle
    assert abs(high - wide) <= 2
    dark = np.nonzero((panel < 250).any(2).any(0))[0]
    left, right = dark.min(), dark.max()
    assert abs((cols.mean() - left) / (right - left) - 0.625) < 0.02  # the middle of the third of four columns


# --- colours and regions ---


def test_zero_is_transparent_and_the_two_signs_differ() -> None:
    rgba = palette.colour(torch.tensor([[0.0, 1.0, -1.0, 9.0]]), 1.0)[0]
    assert rgba[0, 3] == 0
    assert tuple(rgba[1, :3]) == palette.YES
    assert tuple(rgba[2, :3]) == palette.NO
    assert rgba[3, 3] == rgba[1, 3] == rgba[2, 3] > 200


def test_a_map_as_an_address_reads_back() -> None:
    values = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    data = palette.ValueGrid(values, 1.0).data_uri.removeprefix("data:image/png;base64,")
    image = Image.open(BytesIO(base64.b64decode(data)))
    np.testing.assert_array_equal(np.asarray(image.convert("RGBA")), palette.colour(values, 1.0))


@pytest.mark.parametrize(
    ("at", "words"), [((0, 0), "upper left"), ((3, 3), "middle"), ((6, 3), "bottom"), ((2, 6), "right side")]
)
def test_regions_have_names(at: tuple[int, int], words: str) -> None:
    patches: Tensor = torch.full((7, 7), -1.0)
    patches[at] = 2.0
    assert strongest_region(patches) == (words, 1.0)


def test_in_a_browser_numbers_appear_and_views_switch(tmp_path: Path, browser: Any) -> None:
    (tmp_path / "index.html").write_text(page(), encoding="utf-8")
    found = answered()
    best = int(found.cosine.argmax())
    tab = browser.new_page(viewport={"width": 1200, "height": 900})
    errors: list[str] = []
    tab.on("pageerror", lambda e: errors.append(str(e)))
    tab.on("request", lambda r: errors.append(r.url) if r.url.startswith("http") else None)
    tab.goto((tmp_path / "index.html").as_uri())
    for view, answer_ in (("versus", found.contrast()), ("alone", found)):
        tab.click(f"label[for=see-{view}]")
        other = "alone" if view == "versus" else "versus"
        assert tab.locator(f".{view}").first.is_visible()
        assert not tab.locator(f".{other}").first.is_visible()
        overlay = tab.locator(f".{view} .map[data-of=patch]").first
        box = overlay.bounding_box()
        assert box is not None
        overlay.hover(position={"x": box["width"] * 0.9, "y": box["height"] * 0.4})  # row 1, col 3 of 4 × 4
        value = float(answer_.patches[1, 3, best])
        shown = tab.locator("#tip").inner_text()
        assert shown.startswith("patch row 1, col 3: ")
        assert float(shown.split(": ")[1].replace("−", "-")) == pytest.approx(value, abs=6e-5)
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    tab.set_viewport_size({"width": 390, "height": 800})
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")  # nothing sticks out on a telephone
    tab.close()
    assert errors == []
