"""What is looked for: texts embedded once, embeddings, and everything that is no text, option, size or window."""

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from torch import Tensor

import clip_anatomy as ca
from clip_anatomy.errors import BadSpec, BadText
from clip_anatomy.maps.heatmap import heatmap
from clip_anatomy.maps.layer_maps import layer_maps
from clip_anatomy.maps.map_texts import Texts
from clip_anatomy.maps.segment import segment

pytestmark = pytest.mark.usefixtures("one_thread")

ENCODED: list[list[str]] = []


def tokenizer(texts: list[str]) -> Tensor:
    ENCODED.append(list(texts))
    return torch.tensor([[1, 2 + sum(map(ord, t)) % 90, 99] for t in texts])


@pytest.fixture(scope="module")
def clip() -> ca.Clip:
    return ca.load(tiny.open_clip_model(layers=2), tokenizer=tokenizer)


def picture(rows: int = 40, cols: int = 40) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (rows, cols, 3), dtype=np.uint8))


def test_texts_are_embedded_once_and_asked_of_many_pictures(clip: ca.Clip) -> None:
    names, behind, templates = ["a", "bc"], ["grass"], ["{} x", "yy {}"]
    plain = [heatmap(clip, picture(), names, method).values for method in ("decomposition", "surgery", "sclip")]
    masks = segment(clip, picture(), names, background=behind)
    each = [maps.values for maps in layer_maps(clip, picture(), names)]
    filled = heatmap(clip, picture(), ["a"], "surgery", templates=templates)
    asked, around = Texts.of(clip, names), Texts.of(clip, behind)
    alone = Texts.of(clip, ["a"], templates)
    for one in (asked, alone):  # what they are compared with is embedded once too
        heatmap(clip, picture(), one)
    ENCODED.clear()
    for method, expected in zip(("decomposition", "surgery", "sclip"), plain, strict=True):
        found = heatmap(clip, picture(), asked, method)
        assert found.texts == ("a", "bc")
        assert torch.equal(found.values, expected)
    again = segment(clip, picture(), asked, background=around)
    assert np.array_equal(again.labels[0], masks.labels[0])
    assert (again.texts, again.how) == (masks.texts, masks.how)
    assert all(torch.equal(a.values, b) for a, b in zip(layer_maps(clip, picture(), asked), each, strict=True))
    assert ENCODED == []
    # what a text is compared with goes through its own templates
    assert torch.equal(heatmap(clip, picture(), alone, "surgery").values, filled.values)


def test_embeddings_of_any_dtype_and_length_are_texts(clip: ca.Clip) -> None:
    vectors = clip.encode_text(["a", "bc"])
    expected = {m: heatmap(clip, picture(), ["a", "bc"], m).values for m in ("decomposition", "gradcam", "legrad")}
    for given in (vectors, 5 * vectors.double(), vectors.repeat_interleave(2, 0)[::2]):
        for method, values in expected.items():
            torch.testing.assert_close(heatmap(clip, picture(), given, method).values, values, atol=1e-6, rtol=1e-4)
    whole = torch.ones(1, 12, dtype=torch.int64)
    assert heatmap(clip, picture(), whole, "gradcam").values.isfinite().all()
    masks = segment(clip, picture(), vectors)
    assert masks.texts == ("text 0", "text 1")
    assert np.array_equal(masks.labels[0], segment(clip, picture(), ["a", "bc"]).labels[0])


@pytest.mark.parametrize("ask", [heatmap, segment, layer_maps], ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ("a dog", r"one string; a list was expected. Type: \['a dog'\]"),
        ([], "no text was given"),
        (["a", " \t"], "text 1 is blank"),
        (["a", "bc", "a"], "'a' stands twice"),
        (torch.ones(12), r"\[text, 12\] was expected"),
        (torch.ones(0, 12), r"\[text, 12\] was expected"),
        (torch.tensor([[1.0] * 12, [torch.nan] * 12]), "text embedding 1 holds NaN"),
    ],
    ids=str,
)
def test_what_is_no_text_is_refused_by_every_door(clip: ca.Clip, ask: Any, texts: Any, says: str) -> None:
    with pytest.raises(BadText, match=says):
        ask(clip, picture(), texts)


def test_templates_belong_to_strings(clip: ca.Clip) -> None:
    with pytest.raises(BadText, match="embedded already"):
        heatmap(clip, picture(), Texts.of(clip, ["a"]), templates=["{} x"])
    with pytest.raises(BadText, match="templates need strings"):
        heatmap(clip, picture(), torch.ones(1, 12), templates=["{} x"])
    with pytest.raises(BadText, match=r"Type: \['grass'\]"):
        segment(clip, picture(), ["a"], background="grass")


@pytest.mark.parametrize(
    ("method", "options", "says"),
    [
        ("gem", {"depth": 2.5}, "depth=2.5 is a float; a whole number was expected. Type: depth=6"),
        ("surgery", {"depth": "six"}, "depth='six' is a str"),
        ("legrad", {"layers": True}, "layers=True is a bool; a whole number"),
        ("naclip", {"neighbours": "x"}, "a number or None was expected. Type: neighbours=5.0"),
        ("maskclip", {"residual": 1}, "True or False was expected"),
        ("proxyclip", {"affinity": [[1.0]]}, "Type: affinity=torch.tensor"),
    ],
)
def test_an_option_of_another_kind_is_named(clip: ca.Clip, method: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(BadSpec, match=says):
        heatmap(clip, picture(), ["a"], method, **options)


def test_numbers_and_arrays_of_numpy_are_welcome(clip: ca.Clip) -> None:
    expected = heatmap(clip, picture(), ["a"], "gem", depth=1)
    assert torch.equal(heatmap(clip, picture(), ["a"], "gem", depth=np.int64(1)).values, expected.values)
    guide = np.random.default_rng(0).random((16, 16))
    torch.testing.assert_close(
        heatmap(clip, picture(), ["a"], "proxyclip", affinity=guide).values,
        heatmap(clip, picture(), ["a"], "proxyclip", affinity=torch.tensor(guide)).values,
    )


WITHOUT_BEARTYPE = """
import numpy
import clip_anatomy as ca
from clip_anatomy.maps.segment import segment
clip = ca.load("demo")
one = numpy.zeros((40, 56, 3), numpy.uint8)
maps = ca.heatmap(clip, one, ["a"], size=numpy.int32(32), window=numpy.int64(32), stride=16)
print(maps[numpy.int64(0)].values.shape)
print(segment(clip, one, ["a"], threshold=0).shares(0))
for given in [dict(size=64.5), dict(size="all"), dict(size=(1, 2, 3)), dict(window=32.0), dict(texts=["a", 3])]:
    try:
        ca.heatmap(clip, one, **{"texts": ["a"], **given})
    except ca.errors.BadInput as error:
        print(error)
"""


def test_wrong_types_are_told_in_words_where_nobody_checks_them_before() -> None:
    """The rest of the suite runs under beartype, which speaks first; people's programs do not."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", WITHOUT_BEARTYPE], capture_output=True, text=True, check=False, env=env)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == [
        "torch.Size([1, 1, 4, 6])",
        "{'a': 1.0}",
        "size 64.5: pixels were expected. Type: size=336 (the short side), size=(336, 448) or size='whole'",
        "size 'all': pixels were expected. Type: size=336 (the short side), size=(336, 448) or size='whole'",
        "size (1, 2, 3): pixels were expected. Type: size=336 (the short side), size=(336, 448) or size='whole'",
        "window=32.0: pixels were expected. Type: window=112",
        "heatmap: texts is a list ['a', 3]; a list of strings, a tensor or a Texts was expected (strings, or embeddings [text, embed] "
        "of any length). Look at item 1: an int (3)",
    ]


def test_whole_is_the_models_own_short_side_and_bounded(clip: ca.Clip) -> None:
    maps = heatmap(clip, picture(40, 90), ["a", "bc"], size="whole")
    assert torch.equal(maps.values, heatmap(clip, picture(40, 90), ["a", "bc"], size=32).values)
    assert maps.visible(0).all()
    strip = heatmap(clip, picture(6, 4000), ["a"], "raw", size="whole")
    assert 2048 <= strip.values[0, 0].numel() <= 2 * 4096
    assert layer_maps(clip, picture(40, 90), ["a"], size="whole")[0].values.shape == (1, 1, 4, 9)


def test_a_threshold_of_nothing_keeps_everything(clip: ca.Clip) -> None:
    masks = segment(clip, picture(), ["a", "bc"], threshold=0.0)
    assert sum(masks.shares(0).values()) == 1
    assert sum(segment(clip, picture(), ["a", "bc"], threshold=1.0).shares(0).values()) == 0
