"""Models that are one tower alone: what they can do works, and what needs the other tower says one sentence."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers
from PIL import Image
from tiny_families import randomized

import clip_anatomy as ca
from clip_anatomy.errors import UnsupportedModel

SIDE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION = {**SIDE, "image_size": 32, "patch_size": 8}
TEXT = {**SIDE, "vocab_size": 60, "max_position_embeddings": 8, "eos_token_id": 59, "bos_token_id": 58}


def image_model() -> Any:
    return randomized(
        transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**VISION, projection_dim=24))
    )


def text_model() -> Any:
    return randomized(transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**TEXT, projection_dim=24)))


def ids() -> torch.Tensor:
    found = torch.randint(1, 58, (3, 8), generator=torch.Generator().manual_seed(2))
    found[:, 5] = 59
    return found


def test_an_image_model_alone_reads_texts_of_its_other_half() -> None:
    images, texts = ca.load(image_model()), ca.load(text_model())
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    toward = ca.decompose(images, pixels).toward(texts.encode_text(ids()))
    expected = torch.nn.functional.normalize(images.host(pixels).image_embeds, dim=-1)
    other = torch.nn.functional.normalize(texts.host(ids()).text_embeds, dim=-1)
    torch.testing.assert_close(toward.total(), expected @ other.T, atol=1e-5, rtol=1e-5)
    maps = ca.heatmap(images, pixels, texts.encode_text(ids()), method="decomposition")
    assert maps.values.shape == (2, 3, 4, 4)


def test_what_needs_the_other_tower_says_so_and_what_to_type(tmp_path: Path) -> None:
    images, texts = ca.load(image_model()), ca.load(text_model())
    picture = torch.randn(1, 3, 32, 32)
    sentence = r"^CLIPVisionModelWithProjection has an image tower only and cannot embed texts\. Type: .*24"
    for needs in (
        lambda: images.encode_text(["a dog"]),
        lambda: ca.decompose_text(images, ids()),
        lambda: ca.explain(images, picture, ["a dog"]),
        lambda: ca.heatmap(images, picture, ["a dog"]),
    ):
        with pytest.raises(UnsupportedModel, match=sentence):
            needs()
    ca.load(image_model(), tokenizer=lambda texts: ids()[: len(texts)])  # a tokenizer that nothing needs is no error
    sentence = r"^CLIPTextModelWithProjection has a text tower only and cannot embed pictures\. Type: "
    for needs in (
        lambda: texts.encode_image(picture),
        lambda: ca.decompose(texts, picture),
        lambda: ca.heatmap(texts, picture, torch.randn(1, 24)),
        lambda: texts.image_tower,
        lambda: ca.replace_parts(texts, picture, "last=1"),
        lambda: ca.Edit.of(texts, "0.0", by="zero"),
        lambda: ca.neuron_heads(texts, picture),
        lambda: ca.index(texts, tmp_path, tmp_path / "store"),
    ):
        with pytest.raises(UnsupportedModel, match=sentence):
            needs()


def test_check_measures_the_tower_that_is_there() -> None:
    for model, tower, split in ((image_model(), "image", ("2 × 4", "none")), (text_model(), "text", ("none", "2 × 4"))):
        found = ca.check(ca.load(model))
        assert found.holds
        assert {one.tower for one in found.claims} == {tower}
        assert all(said in told for said, told in zip(split, found.split, strict=True))
        assert len(found.claims) >= 8


def test_where_one_tower_cannot_be_read_the_other_opens_and_the_first_says_why() -> None:
    towers = {"text_config": {**TEXT, "hidden_act": "relu"}, "vision_config": dict(VISION)}
    model = randomized(transformers.CLIPModel(transformers.CLIPConfig(**towers, projection_dim=24)))
    clip = ca.load(model)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = tiny.features(model.get_image_features(pixels))
    torch.testing.assert_close(ca.decompose(clip, pixels).total(), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(
        UnsupportedModel, match=r"text tower .* not opened, its image tower was: found the activation 'relu'"
    ):
        clip.encode_text(ids())
    towers["vision_config"]["hidden_act"] = "relu"
    with pytest.raises(UnsupportedModel, match=r"^found the activation 'relu'"):
        ca.load(randomized(transformers.CLIPModel(transformers.CLIPConfig(**towers, projection_dim=24))))


def test_an_image_model_alone_searches_by_pictures(tmp_path: Path) -> None:
    clip = ca.load(image_model(), tokenizer=lambda texts: ids()[: len(texts)])
    for at in range(6):
        Image.linear_gradient("L").rotate(60 * at).convert("RGB").save(tmp_path / f"{at}.png")
    ca.index(clip, tmp_path, tmp_path / "store")
    for heads in (None, "1.0"):
        found = ca.search(tmp_path / "store", tmp_path / "2.png", heads=heads, k=3, clip=clip)
        assert len(found.hits) == 3
    maps = ca.heatmap(clip, tmp_path / "2.png", torch.randn(2, 24))
    assert maps.values.shape == (1, 2, 4, 4)
