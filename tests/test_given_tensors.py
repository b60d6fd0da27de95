"""Tensors and weights handed in as they are: told apart, held to their width, cut as the host cuts them, noticed when they change."""

from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from PIL import Image

import clip_anatomy as ca
from clip_anatomy.images.preprocess import Preprocess
from clip_anatomy.loading.text_cache import embed_texts


def plain_tokenizer(texts: list[str]) -> torch.Tensor:
    return torch.tensor([[1, 2 + len(t) % 5, 99] for t in texts])


@pytest.fixture(scope="module")
def demo() -> ca.Clip:
    return ca.load("demo")


def pictures() -> torch.Tensor:
    """Two pictures in 0..1, of soft spots."""
    return F.interpolate(torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(1)), (64, 64), mode="bilinear")


def test_float_batches_of_pictures_are_told_from_normalised_ones(demo: ca.Clip) -> None:
    batch = pictures()
    normalised = demo.pixels(list(batch))
    for given in (batch, batch * 255, (batch * 255).half()):
        for call in (demo.encode_image, lambda x: ca.heatmap(demo, x, ["a bird"]), lambda x: ca.decompose(demo, x)):
            with pytest.raises(ca.errors.BadImage, match="as pictures in 0..1? do|as pictures in 0..255 do"):
                call(given)
    # what the messages say to type
    assert torch.equal(demo.encode_image(normalised), demo.encode_image(list(batch)))
    same = demo.encode_image((batch * 255).round().to(torch.uint8))
    assert float(F.cosine_similarity(same, demo.encode_image(normalised)).min()) > 0.9999
    # probes and pictures that are bright all over stay what they are
    assert demo.encode_image(torch.zeros(1, 3, 64, 64)).shape == demo.encode_image(normalised[:1] + 2.5).shape


@pytest.mark.parametrize("model", [tiny.open_clip_model, tiny.transformers_model])
def test_a_size_that_is_no_multiple_of_the_patch_works_as_in_the_host(model: Callable[..., Any]) -> None:
    host: Any = model(size=37)
    clip = ca.load(host, tokenizer=plain_tokenizer)
    assert (clip.preprocess.size, clip.preprocess.cut) == ((37, 37), (32, 32))
    picture = Image.effect_noise((90, 60), 80).convert("RGB")
    whole = Preprocess(**{**vars(clip.preprocess), "cut": None})(picture)[None]
    with torch.no_grad():
        theirs = host.encode_image(whole) if hasattr(host, "visual") else host.get_image_features(pixel_values=whole)
    theirs = theirs if isinstance(theirs, torch.Tensor) else theirs.pooler_output
    torch.testing.assert_close(clip.encode_image(picture), theirs, rtol=1e-4, atol=1e-5)
    where = ca.heatmap(clip, picture, ["a"]).geometries[0]
    assert where.size == (32, 32)
    assert where.offset == Preprocess(**{**vars(clip.preprocess), "cut": None}).geometry(90, 60).offset
    assert Preprocess.from_dict(clip.preprocess.to_dict()) == clip.preprocess
    assert "cut" not in clip.preprocess.at(32).to_dict()


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p.add_(0.01),
        lambda p: p.data.mul_(1.01),
        lambda p: p.copy_(p.flip(0)),
        lambda p: p.data.view(-1)[:1].zero_(),
    ],
    ids=["in place", "through .data", "reordered", "one number through .data"],
)
def test_weights_changed_in_place_have_another_digest_and_other_embeddings(change: Callable[[Any], Any]) -> None:
    host: Any = tiny.open_clip_model()
    clip = ca.load(host, tokenizer=plain_tokenizer)
    before, kept = clip.digest, embed_texts(clip, ["a", "bc"])
    assert clip.digest == before
    with torch.no_grad():
        change(host.text_projection)
    assert clip.digest != before
    assert clip.digest == ca.load(host, tokenizer=plain_tokenizer).digest
    assert not torch.equal(embed_texts(clip, ["a", "bc"]), kept)
    torch.testing.assert_close(embed_texts(clip, ["a", "bc"]), clip.encode_text(["a", "bc"]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tokens_sum_to_their_heads_in_half_precision(dtype: torch.dtype) -> None:
    host: Any = tiny.open_clip_model(layers=3, heads=4, d=16)
    with torch.no_grad():  # attention that looks at few tokens: scores in the tens
        for block in host.visual.transformer.resblocks:
            block.attn.in_proj_weight[:128] *= 3.0
    clip = ca.load(host.to(dtype), parity=False)
    parts = ca.decompose(clip, torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(5)))
    text = torch.randn(4, 12, generator=torch.Generator().manual_seed(6))
    heads = parts.toward(text).heads
    assert float((parts.tokens(text).sum(3) - heads).abs().max() / heads.abs().max()) < 0.02


def test_texts_of_another_shape_are_named(demo: ca.Clip) -> None:
    parts = ca.decompose(demo, torch.randn(1, 3, 64, 64))
    for text in (torch.randn(2, 7), torch.full((1, 128), float("nan"))):
        for call in (parts.toward, parts.tokens, lambda t: ca.decompose(demo, torch.randn(1, 3, 64, 64), texts=t)):
            with pytest.raises(ca.errors.BadText, match=r"Type: clip.encode_text"):
                call(text)
