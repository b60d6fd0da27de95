"""The numbers of `explain`: every share adds up, and the whole is what the host library says."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.text import Text
from PIL import Image

import clip_anatomy as ca
from clip_anatomy.data.picture_batches import picture_batches
from clip_anatomy.data.typed_pictures import typed_pictures
from clip_anatomy.errors import BadImage, BadInput, BadText
from clip_anatomy.images.pixels import OPENAI_MEAN, OPENAI_STD, Preprocess
from clip_anatomy.loading.tokenizer import default_tokenizer
from clip_anatomy.loading.typed_texts import checked_texts, foreign_share, shorten, words_read
from clip_anatomy.loading.word_tokenizer import WordTokenizer
from clip_anatomy.report.shown_picture import view_of
from clip_anatomy.split.picture_explanation import (
    PictureExplanation,
    explain_pixels,
    explanation_dict,
    signed,
    sink_patch,
    summands,
)

CLIP = ca.load(tiny.open_clip_model(layers=3, heads=2))
IDS = torch.tensor([[1, 5, 9, 99, 0, 0], [1, 7, 99, 0, 0, 0], [1, 50, 60, 70, 80, 99]])


@cache
def answers(count: int = 2, texts: int = 3) -> tuple[list[PictureExplanation], torch.Tensor]:
    pixels = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return explain_pixels(CLIP, pixels, CLIP.encode_text(IDS[:texts])), pixels


def test_cosine_and_probability_are_the_host_librarys() -> None:
    found, pixels = answers()
    with torch.no_grad():
        assert CLIP.host is not None
        image = CLIP.host.encode_image(pixels, normalize=True)
        text = CLIP.host.encode_text(torch.nn.functional.pad(IDS, (0, 6)), normalize=True)
    cosine = image @ text.T
    softmax = (CLIP.host.logit_scale.exp() * cosine).softmax(-1)
    for i, each in enumerate(found):
        torch.testing.assert_close(each.cosine, cosine[i], atol=1e-5, rtol=0)
        torch.testing.assert_close(each.probability, softmax[i], atol=1e-4, rtol=0)


def test_every_way_of_adding_up_gives_the_cosine() -> None:
    found, _ = answers()
    for each in (*found, *(f.contrast() for f in found)):
        assert each.residue.abs().max() < 1e-6
        heads, patches = each.heads.double().sum((0, 1)), each.patches.double().sum((0, 1))
        assert (heads - patches - each.class_token.double()).abs().max() < 1e-6
        for k in range(3):
            assert sum(v.value for v in summands(each, k)) == pytest.approx(float(each.cosine[k]), abs=1e-5)
            by_part = sum(v.value for v in each.ranked_parts(k)) + float(each.input_embedding[k]) + float(each.bias[k])
            assert by_part == pytest.approx(float(each.cosine[k]), abs=1e-5)
            by_layer = float(each.layers(k).sum()) + float(each.input_embedding[k]) + float(each.bias[k])
            assert by_layer == pytest.approx(float(each.cosine[k]), abs=1e-5)


def test_contrast_is_the_text_minus_the_mean_of_the_others() -> None:
    found, _ = answers(1)
    contrast = found[0].contrast()
    for k in range(3):
        others = [j for j in range(3) if j != k]
        for name in ("cosine", "heads", "mlps", "input_embedding", "bias", "patches", "class_token"):
            x = getattr(found[0], name).numpy().astype(np.float64)
            np.testing.assert_allclose(getattr(contrast, name)[..., k], x[..., k] - x[..., others].mean(-1), atol=1e-6)


def test_one_text_has_no_contrast() -> None:
    found, _ = answers(1, texts=1)
    with pytest.raises(BadInput, match="texts="):
        found[0].contrast()
    assert float(found[0].probability[0]) == 1.0


def test_a_patch_answers_for_its_own_place() -> None:
    """Each patch's share against a loop over cut-out pixels with the library's own layers: one block, one patch at a time."""
    model: Any = tiny.open_clip_model(layers=1, heads=2, d=8)
    clip = ca.load(model)
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        text = torch.nn.functional.normalize(clip.encode_text(IDS), dim=-1)
        embedding = model.encode_image(pixels)[0]
        v, block = model.visual, model.visual.transformer.resblocks[0]
        places = [(row, col) for row in range(4) for col in range(4)]
        cut = [pixels[0, :, 8 * r : 8 * r + 8, 8 * c : 8 * c + 8] for r, c in places]
        tokens = torch.stack([v.class_embedding, *((v.conv1.weight * x).sum((1, 2, 3)) for x in cut)])
        x = block.ln_1(v.ln_pre(tokens + v.positional_embedding))
        q, k, value = (x @ block.attn.in_proj_weight.T + block.attn.in_proj_bias).view(17, 3, 2, 8).unbind(1)
        stream = v.transformer(v.ln_pre(tokens + v.positional_embedding)[None])[0, 0]
        found = explain_pixels(clip, pixels, clip.encode_text(IDS))[0]
        for at, (row, col) in enumerate(places, 1):
            wrote = torch.zeros(16)
            for head in range(2):
                attention = (q[0, head] @ k[:, head].T / 8**0.5).softmax(-1)[at]
                wrote += block.attn.out_proj.weight[:, 8 * head : 8 * head + 8] @ (attention * value[at, head])
            share = (wrote - wrote.mean()) / (stream.var(unbiased=False) + v.ln_post.eps).sqrt() * v.ln_post.weight
            torch.testing.assert_close(
                found.patches[row, col], text @ (share @ v.proj) / embedding.norm(), atol=1e-6, rtol=1e-4
            )


def test_json_holds_what_sums_to_the_cosine() -> None:
    found, _ = answers(1)
    texts = ["a", "b", "c"]
    held = json.loads(json.dumps(explanation_dict(found[0], texts), allow_nan=False))
    for k, one in enumerate(held):
        parts = np.sum(one["heads"]) + np.sum(one["mlps"]) + one["input_embedding"] + one["bias"]
        assert parts == pytest.approx(one["cosine"], abs=1e-5)
        assert np.sum(one["patches"]) + one["class_token"] == pytest.approx(np.sum(one["heads"]), abs=1e-5)
        assert abs(one["residue"]) < 1e-6
        name, value = one["yes_and_no"]["yes"][0]
        loudest = found[0].ranked_parts(k)[0]
        assert (name, value) == (loudest.name, pytest.approx(loudest.value, rel=1e-6))
        mean_of_others = np.mean([other["cosine"] for other in held if other is not one])
        assert one["against_other_texts"]["cosine"] == pytest.approx(one["cosine"] - mean_of_others, abs=1e-6)


@given(row=st.integers(0, 5), col=st.integers(0, 5), texts=st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_a_sink_is_a_patch_that_fills_every_map(row: int, col: int, texts: int) -> None:
    found, _ = answers(1, texts)
    patches = torch.full((6, 6, texts), 0.001)
    assert sink_patch(replace(found[0], patches=patches)) is None
    patches[row, col] = -0.1
    at = sink_patch(replace(found[0], patches=patches))
    assert at is not None
    assert at[:2] == (row, col)
    assert at[2] == pytest.approx(0.1 / (0.1 + 35 * 0.001), rel=1e-2)


def test_numbers_are_written_with_a_sign_and_without_minus_zero() -> None:
    assert [signed(x) for x in (0.01234, -0.5, 0.0, -0.00001)] == ["+0.0123", "−0.5000", "0.0000", "0.0000"]


# --- texts ---


def test_an_empty_text_is_refused_with_what_to_type() -> None:
    for bad in ("", "  \n", "\u200b"):
        with pytest.raises(BadText, match=r"text 2 is empty\. Type"):
            checked_texts(["a dog", bad], None)
    with pytest.raises(BadText, match="no text was given"):
        checked_texts([], None)


def test_a_repeated_text_is_asked_once() -> None:
    assert [q.text for q in checked_texts(["a", "b", "a"], None)] == ["a", "b"]


@pytest.mark.parametrize("make", [WordTokenizer.bundled, lambda: default_tokenizer(49408, 77)], ids=["demo", "CLIP"])
def test_words_that_do_not_fit_are_counted(make: Callable[[], Any]) -> None:
    tokenizer = make()
    context = 32 if isinstance(tokenizer, WordTokenizer) else 77
    assert words_read("a red circle", tokenizer) == (3, 3)
    assert words_read(" ".join(["red"] * (context - 2)), tokenizer) == (context - 2, context - 2)
    assert words_read(" ".join(["red"] * (context - 1)), tokenizer) == (context - 2, context - 1)
    assert words_read(" ".join(["red"] * 10_000), tokenizer) == (context - 2, 10_000)
    (question,) = checked_texts([" ".join(["red"] * 10_000)], tokenizer)
    assert question.notes[0].startswith(f"Only the first {context - 2} of its 10,000 words were read")
    assert len(question.short) <= 90


def test_one_endless_word_is_said_to_be_cut() -> None:
    (question,) = checked_texts(["x" * 5_000], default_tokenizer(49408, 77))
    assert question.notes == ("It is too long: only its beginning was read.",)


def test_the_demo_model_says_what_it_does_not_know() -> None:
    tokenizer = WordTokenizer.bundled()
    known, strange = checked_texts(["a red circle", "a zebra on the motorway"], tokenizer)
    assert known.notes == ()
    assert strange.notes[0].startswith("This model does not know: zebra, motorway.")


def test_letters_of_other_scripts_are_noted_for_other_models() -> None:
    tokenizer = default_tokenizer(49408, 77)
    latin, chinese, arabic = checked_texts(["ein Bär", "一只红色的鸟", "طائر أحمر"], tokenizer)
    assert latin.notes == ()
    for question in (chinese, arabic):
        assert question.notes[0].startswith("Most of it is not in Latin letters")
    assert foreign_share("123 !?") == 0.0


def test_titles_stay_on_one_line() -> None:
    assert shorten("a\nb\x07  c") == "a b c"
    assert len(shorten("word " * 100, 40)) <= 40


# --- pictures ---

SQUARE = Preprocess(size=(32, 32), mean=OPENAI_MEAN, std=OPENAI_STD)


def test_what_the_model_sees_of_a_wide_picture() -> None:
    picture = view_of(Image.new("RGB", (60, 30)), "x", SQUARE.geometry(60, 30))
    assert (picture.visible.left, picture.visible.right) == (15.0, 45.0)
    assert picture.cropped
    assert picture.canvas == picture.view == (0.0, 0.0, 30.0, 60.0)


def test_of_a_long_and_thin_picture_only_what_is_seen_is_shown() -> None:
    picture = view_of(Image.new("RGB", (20_000, 20)), "x", SQUARE.geometry(20_000, 20))
    assert not picture.cropped
    assert max(picture.shown.size) / min(picture.shown.size) < 1.2


def test_a_padded_picture_is_drawn_with_its_padding() -> None:
    padded = replace(SQUARE, resize="longest")
    picture = view_of(Image.new("RGB", (60, 30)), "x", padded.geometry(60, 30))
    assert picture.canvas == (-15.0, 0.0, 45.0, 60.0)


def test_pixels_are_those_of_the_library(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)).save(path)
    (batch,) = picture_batches(CLIP, [str(path)])
    torch.testing.assert_close(batch.pixels, CLIP.pixels([path]), atol=0, rtol=0)


def test_a_folder_is_the_pictures_in_it(tmp_path: Path) -> None:
    with pytest.raises(BadImage, match=r"holds no picture\. Type a collection with"):
        list(picture_batches(CLIP, str(tmp_path)))
    for name in ("b.png", "a.png", ".hidden.png"):
        Image.new("RGB", (40, 40)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    found = typed_pictures([str(tmp_path), "https://example.com/c.jpg"])
    assert [one.name for one in found] == [f"{tmp_path}/a.png", f"{tmp_path}/b.png", "https://example.com/c.jpg"]
    assert found.passed_over == {"hidden": 1, "no picture: .txt": 1}


# --- the public function ---


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for i, path in enumerate(paths):
        values = np.random.default_rng(i).integers(0, 255, (30 + 8 * i, 50, 3), np.uint8)
        Image.fromarray(values).save(path)
    return paths


def test_pictures_in_batches_are_pictures_one_by_one(photos: list[Path]) -> None:
    texts = ["a bird", "the sky", "a red circle"]
    whole = ca.explain("demo", photos, texts)
    assert len(whole) == 5
    for i, path in enumerate(photos):
        alone = ca.explain("demo", [path], texts)[0]
        for name in ("cosine", "heads", "mlps", "patches", "class_token"):
            torch.testing.assert_close(getattr(whole[i], name), getattr(alone, name), atol=1e-6, rtol=1e-4)


def test_bad_pictures_are_raised_or_named(photos: list[Path]) -> None:
    photos[2].write_bytes(b"no picture")
    with pytest.raises(BadImage, match=r"^image 2: .*2\.png"):
        ca.explain("demo", photos, ["a", "b"])
    told: list[tuple[str, int, int | None]] = []
    found = ca.explain("demo", photos, ["a", "b"], skip_bad=True, progress=lambda *step: told.append(step))
    assert [Path(name).name for name in found.names] == ["0.png", "1.png", "3.png", "4.png"]
    assert [Path(name).name for name, _ in found.failed] == ["2.png"]
    assert told[-1][1:] == (5, 5)
    with pytest.raises(BadImage, match="none of the 2 pictures could be read"):
        ca.explain("demo", ["missing.png", "gone.png"], ["a"], skip_bad=True)


def test_a_result_is_printed_saved_and_drawn(photos: list[Path], tmp_path: Path) -> None:
    found = ca.explain("demo", photos[:1], ["a bird", "the sky"])
    assert repr(found) == found.summary()
    assert "0.png" in found.summary()
    assert json.loads(json.dumps(found.to_dict()))["images"][0]["texts"][0]["text"] == "a bird"
    out = found.save(tmp_path / "out")
    assert sorted(path.suffix for path in out.iterdir()) == [".html", ".json", ".png", ".png"]
    assert found.figure().axes
    assert found._repr_html_().startswith("<iframe srcdoc=")
    with pytest.raises(BadInput, match="preprocessed tensors"):
        ca.explain("demo", torch.randn(1, 3, 64, 64), ["a"]).save(tmp_path / "other")


def texts_that_overlap(figure: Any) -> list[tuple[str, str]]:
    """Pairs of the table of sums that are drawn over each other."""
    figure.canvas.draw()  # places are known then
    (table,) = (axes for axes in figure.axes if any(one.get_text() == "MLPs" for one in axes.texts))
    boxes = [(one.get_text(), one.get_window_extent()) for one in table.texts]
    return [(a, b) for i, (a, here) in enumerate(boxes) for b, there in boxes[i + 1 :] if here.overlaps(there)]


def test_two_pictures_differ_exactly_by_their_parts(photos: list[Path], tmp_path: Path) -> None:
    texts = ["a bird", "the sky", "a moon"]
    found, other = ca.explain("demo", photos[:2], texts, versus=photos[2]), ca.explain("demo", photos[2], texts)[0]
    for own, less in zip(ca.explain("demo", photos[:2], texts).images, found.images, strict=True):
        assert torch.equal(less.cosine, own.cosine - other.cosine)
        assert torch.equal(less.heads, own.heads - other.heads)
        assert torch.equal(less.patches, own.patches)
        assert less.other_patches is not None
        assert torch.equal(less.other_patches, other.patches)
        for each in (less, less.contrast()):
            assert each.residue.abs().max() < 1e-5
            read = each.patches.sum((0, 1)) - each.other_patches.sum((0, 1)) + each.class_token
            torch.testing.assert_close(read, each.heads.sum((0, 1)), atol=1e-5, rtol=0)
            for k in range(3):
                assert sum(share.value for share in summands(each, k)) == pytest.approx(float(each.cosine[k]), abs=1e-5)
    said = found.to_dict()
    assert said["versus"]["image"] == found.versus.names[0]
    first = said["images"][0]["texts"][0]
    assert first["difference"] == pytest.approx(first["cosine"] - first["cosine_of_versus"], abs=1e-6)
    assert first["difference"] == pytest.approx(first["sum"], abs=1e-5)
    assert "difference: of the cosines, this minus" in found.summary()
    found.save(tmp_path / "report", pictures=False)
    page = (tmp_path / "report" / "index.html").read_text()
    assert f"In {photos[2].name}, which is taken away" in page
    assert "Every number here is a difference" in page
    assert texts_that_overlap(found.figure()) == []
    assert f"{photos[0].name} minus {photos[2].name} · demo" in {one.get_text() for one in found.figure().findobj(Text)}
    alike = ca.explain("demo", photos[0], texts, versus=Image.open(photos[0]))[0]
    assert alike.cosine.abs().max() < 1e-7
    with pytest.raises(BadInput, match="versus is a list.*another picture, or another model"):
        ca.explain("demo", photos[0], texts, versus=list(photos[:3]))  # type: ignore[arg-type]


def test_two_models_differ_exactly_by_their_parts(photos: list[Path]) -> None:
    trained = copy.deepcopy(tiny.open_clip_model(layers=3, heads=2))
    with torch.no_grad():
        trained.visual.transformer.resblocks[1].attn.out_proj.weight += 0.1
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    texts = ["a bird", "the sky"]
    clip, after = (ca.load(model, tokenizer=few_ids) for model in (tiny.open_clip_model(layers=3, heads=2), trained))
    own, other = (ca.explain(model, pixels, texts) for model in (clip, after))
    found = ca.explain(clip, pixels, texts, versus=after)
    for less, a, b in zip(found.images, own.images, other.images, strict=True):
        for part in ("cosine", "heads", "mlps", "patches", "class_token", "bias"):
            torch.testing.assert_close(getattr(less, part), getattr(a, part) - getattr(b, part))
        assert less.residue.abs().max() < 1e-5
    assert found.to_dict()["versus"]["model"]["digest"] != found.to_dict()["model"]["digest"]
    with pytest.raises(BadInput, match=r"it has heads \[8, 6\], this model \[3, 2\]; only models of one architecture"):
        ca.explain(clip, photos[0], texts, versus="demo")


def few_ids(texts: list[str]) -> torch.Tensor:
    return torch.tensor([[1, 5 + len(text), 99, *[0] * 9] for text in texts])
