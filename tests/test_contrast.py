"""What is subtracted from texts, and one colour scale over a page: every map says something, and says how much."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from PIL import Image

import clip_anatomy as ca
from clip_anatomy.cli.main import main
from clip_anatomy.errors import BadSpec
from clip_anatomy.loading.demo import examples
from clip_anatomy.maps.contrast import contrast_of, neutral_texts
from clip_anatomy.maps.layer_maps import cumulative, layer_maps
from clip_anatomy.maps.map_set import MapSet, map_set
from clip_anatomy.report import maps_folder
from clip_anatomy.report.map_overlay import ShadedSet, empty_maps, overlay, shades_of
from clip_anatomy.split.picture_explanation import PictureExplanation
from clip_anatomy.split.tokens import token_map

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def clip() -> Any:
    return ca.load("demo")


def unit(clip: Any, texts: list[str]) -> torch.Tensor:
    return F.normalize(clip.encode_text(texts), dim=-1)


@pytest.mark.parametrize("method", ["decomposition", "surgery"])
def test_a_map_does_not_change_with_the_texts_beside_it_and_two_are_no_mirror(clip: Any, method: str) -> None:
    pictures = examples()[:2]
    two = ca.heatmap(clip, pictures, ["a bird", "a moon"], method)
    alone = ca.heatmap(clip, pictures, ["a bird"], method)
    torch.testing.assert_close(two["a bird"].values, alone.values, atol=1e-6, rtol=1e-5)
    assert float(torch.corrcoef(two.values.flatten(2).transpose(0, 1).flatten(1))[0, 1]) > -0.9
    assert two.subtracted == "the mean of 40 descriptions of anything"
    mirrored = ca.heatmap(clip, pictures, ["a bird", "a moon"], "decomposition", against="each other")
    torch.testing.assert_close(mirrored.values[:, 0], -mirrored.values[:, 1], atol=1e-6, rtol=1e-4)
    assert mirrored.subtracted == "the mean of the texts"


def test_what_is_subtracted_is_what_is_said(clip: Any) -> None:
    pixels = clip.pixels(examples()[:1])
    texts, other = ["a bird", "a moon"], ["a red circle", "the sky"]

    def expected(less: torch.Tensor) -> torch.Tensor:
        return token_map(clip.image_tower, pixels, unit(clip, texts) - less)[0, 1:].T.unflatten(1, (8, 8))

    neutral = unit(clip, list(neutral_texts(clip))).mean(0)
    given = {
        "neutral": neutral, "nothing": torch.zeros(()), "": unit(clip, [""]), "a fish": unit(clip, ["a fish"]),
        "each other": unit(clip, texts).mean(0),
    }  # fmt: skip
    for against, less in given.items():
        found = ca.heatmap(clip, pixels, texts, against=against)
        torch.testing.assert_close(found.values[0], expected(less), atol=1e-6, rtol=1e-4)
    for against in (other, clip.encode_text(other), tuple(other)):
        found = ca.heatmap(clip, pixels, texts, against=against)
        torch.testing.assert_close(found.values[0], expected(unit(clip, other).mean(0)), atol=1e-6, rtol=1e-4)
    assert found.subtracted == "the mean of “a red circle”, “the sky”"
    said = [contrast_of(clip, what).description for what in ("nothing", None, "", "a fish")]
    assert said == ["", "", "the empty text", "“a fish”"]
    each = layer_maps(clip, examples()[:1], texts, against="a fish")
    whole = ca.heatmap(clip, examples()[:1], texts, against="a fish")
    torch.testing.assert_close(cumulative(each)[-1].values, whole.values, atol=1e-5, rtol=1e-4)
    assert each[0].subtracted == whole.subtracted


def test_a_model_without_a_tokenizer_subtracts_nothing_and_says_so() -> None:
    bare = ca.load(tiny.open_clip_model(layers=2))
    pixels, text = torch.randn(1, 3, 32, 32), torch.randn(2, 12)
    found = ca.heatmap(bare, pixels, text)
    assert torch.equal(found.values, ca.heatmap(bare, pixels, text, against=None).values)
    assert found.subtracted == ""


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"against": []}, "a text, texts, or neutral, each other, nothing were expected. Type: against='neutral'"),
        ({"against": torch.zeros(2, 5)}, r"against is \[2, 5\]; \[text, \d+\] was expected"),
        ({"method": "raw", "against": ""}, "method 'raw' compares texts with nothing"),
        ({"minus_mean": True}, "Its options and their defaults: layers=None, heads=None"),
    ],
)
def test_what_is_no_contrast_is_refused(clip: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(BadSpec, match=says):
        ca.heatmap(clip, examples()[:1], ["a bird"], **options)


def test_page_terminal_and_json_say_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*map(str, examples()[:2]), "-t", "a bird", "-t", "a moon", "--method", "decomposition,raw"]
    assert main(["heatmap", *words, "--out", str(tmp_path / "maps")]) == 0
    table = capsys.readouterr().out
    kept = json.loads((tmp_path / "maps" / "heatmap.json").read_text())
    page = (tmp_path / "maps" / "index.html").read_text()
    contrast = "the mean of 40 descriptions of anything"
    assert kept["subtracted"] == {"decomposition": contrast, "raw": ""}
    assert f"decomposition: subtracted from every text: {contrast}" in table
    assert page.count(f"Subtracted from every text: {contrast}.") == 2
    rows = [row for image in kept["images"] for row in image["maps"]]
    assert len(rows) == 8
    for row in rows:
        low, high = (f"{row[end]:+.4f}".replace("-", "−") for end in ("lowest", "highest"))
        assert re.search(rf"{re.escape(low)}\s+{re.escape(high)}", table)
        assert f"{low} to {high}" in page
        assert row["subtracted"] == kept["subtracted"][row["method"]]
    assert main(["heatmap", *words, "--against", "a fish", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["subtracted"]["decomposition"] == "“a fish”"
    assert main(["heatmap", *words[:4], "--method", "raw", "--against", "a fish", "--json"]) == 2
    assert "compares texts with anything" in capsys.readouterr().err


# --- colours ---


def saturation(drawn: Image.Image) -> float:
    levels = np.asarray(drawn).astype(int)
    return float((levels.max(-1) - levels.min(-1)).max())


def test_one_scale_for_all_pictures_of_a_page(clip: Any) -> None:
    grey = Image.new("RGB", (64, 64), (128, 128, 128))
    maps = ca.heatmap(clip, [grey, grey], ["a bird", "a moon"])
    values = torch.zeros_like(maps.values)
    values[0, 0, 2, 2], values[0, 1, 2, 2], values[1, 0, 2, 2] = 0.12, 0.03, 0.0003
    maps = type(maps)(values, maps.method, maps.texts, maps.geometries, maps.pictures, maps.run)
    shades = shades_of(maps)
    assert shades.limits == pytest.approx((0.12, 0.12))
    strong, weak, tiny_ = (saturation(overlay(grey, shades[i], k)) for i, k in ((0, 0), (0, 1), (1, 0)))
    assert strong > 100
    assert weak == pytest.approx(strong / 4, rel=0.15)
    assert tiny_ <= 3
    heat = [np.asarray(overlay(grey, shades[i], k, "heat")).astype(int)[20, 20].sum() for i, k in ((0, 0), (0, 1), (1, 0))]  # fmt: skip
    assert heat[0] > heat[1] > heat[2]


@pytest.mark.parametrize("method", ["decomposition", "raw"])
def test_a_map_with_nothing_to_say_looks_empty_though_it_is_alone(clip: Any, method: str) -> None:
    grey = Image.new("RGB", (64, 64), (128, 128, 128))
    maps = ca.heatmap(clip, [grey], ["a bird"], method)
    noise = 0.3 + 1e-4 * torch.randn(maps.values.shape, generator=torch.Generator().manual_seed(0))
    values = noise if method == "raw" else noise - 0.3
    quiet = type(maps)(values, maps.method, maps.texts, maps.geometries, maps.pictures, maps.run)
    assert saturation(overlay(grey, shades_of(quiet)[0], 0)) < 25
    loud = type(maps)(values * 1000, maps.method, maps.texts, maps.geometries, maps.pictures, maps.run)
    assert saturation(overlay(grey, shades_of(loud)[0], 0)) > 100


@pytest.mark.parametrize("method", ["gradcam", "legrad", "chefer", "grad_eclip", "attention"])
def test_a_map_of_any_unit_that_points_nowhere_or_is_faint_on_its_page_looks_empty_and_says_so(
    clip: Any, method: str
) -> None:
    from clip_anatomy.report.maps_page import _figures

    grey = Image.new("RGB", (64, 64), (128, 128, 128))
    maps = ca.heatmap(clip, [grey], ["a bird", "a moon", "a dog", "a cat"], method)
    values = torch.zeros_like(maps.values)
    values[0, 0] = 3e-4 * torch.rand(values.shape[2:], generator=torch.Generator().manual_seed(0))  # far below the next
    values[0, 1, 2, 2] = 0.12
    values[0, 2] = 0.5 * (1 + 1e-6 * torch.randn(values.shape[2:]))  # the same everywhere, though the largest
    maps = type(maps)(values, maps.method, maps.texts, maps.geometries, maps.pictures, maps.run)
    shades = shades_of(maps)[0]
    assert shades.limits == pytest.approx((0.12,) * 4)
    assert [one["empty"] for one in _figures(maps, shades, "signed")] == [True, False, True, True]
    assert [saturation(overlay(grey, shades, k)) < 5 for k in range(4)] == [True, False, True, True]
    assert [one.split(" in ")[0] for one in empty_maps(MapSet((maps,)))] == [
        f"{method} of “{one}”" for one in ("a bird", "a dog", "a cat")
    ]
    (row,) = maps_folder._rows(MapSet((maps,))[0], ShadedSet.of(MapSet((maps,)))[0], grey)
    assert [cell.caption for cell in row.cells[1:]] == [
        "a bird: nothing to show",
        "a moon",
        "a dog: nothing to show",
        "a cat: nothing to show",
    ]
    alone = type(maps)(values[:, :1], maps.method, maps.texts[:1], maps.geometries, maps.pictures, maps.run)
    assert not shades_of(alone)[0].says_nothing(0)  # no unit to hold it against: its scale stands beside it


def test_layers_share_one_scale_and_their_sums_another(clip: Any) -> None:
    found = map_set(clip, examples()[:3], ["a bird"], layers=True)
    shaded = ShadedSet.of(found)
    assert len({one.limits for one in shaded.layers}) == len({one.limits for one in shaded.sums}) == 1
    largest = max(float(maps.values.abs().max()) for maps in found.layers)
    assert shaded.layers[0].limits[0] <= largest
    assert shaded[1].layers[0].limits == shaded.layers[0].limits


def test_the_page_of_explain_has_one_scale_for_its_maps(clip: Any) -> None:
    from clip_anatomy.report.explain_page import map_limits

    shapes: dict[str, tuple[int, ...]] = {"heads": (3, 2), "mlps": (3,), "input_embedding": (), "bias": (), "patches": (4, 4), "class_token": ()}  # fmt: skip

    def explained(strength: float) -> PictureExplanation:
        draw = torch.Generator().manual_seed(0)
        parts: dict[str, Any] = {
            name: strength * torch.randn(*shape, 2, generator=draw) for name, shape in shapes.items()
        }
        return PictureExplanation(torch.tensor([0.3, 0.1]), torch.tensor([0.9, 0.1]), **parts)

    strong, weak = explained(0.05), explained(1e-4)
    both = map_limits([weak, strong])
    assert both == map_limits([strong])
    assert both["alone"] == pytest.approx(float(strong.patches.abs().max()))
    assert map_limits([weak]) == {"versus": 0.2 / 16, "alone": 0.2 / 16}  # nothing to say: it looks empty
