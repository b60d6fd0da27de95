"""Text towers that are no plain CLIP's: of transformers inside open_clip (one part or every block), class tokens, padding."""

from typing import Any
from unittest.mock import patch

import open_clip
import pytest
import torch
import transformers
from open_clip.timm_model import TimmModel
from tiny_families import TEXT, VISION, randomized

import clip_anatomy as ca
from clip_anatomy.errors import UnsupportedModel
from clip_anatomy.towers.split_kind import split_kind

pytestmark = pytest.mark.usefixtures("one_thread")
BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "vocab_size": 60}
CONFIGS: dict[str, Any] = {
    "roberta": lambda: transformers.RobertaConfig(**BERT, pad_token_id=1),
    "xlm-roberta": lambda: transformers.XLMRobertaConfig(**BERT, pad_token_id=1),
    "mt5": lambda: transformers.MT5Config(d_model=32, d_ff=48, num_layers=2, num_heads=2, d_kv=16, vocab_size=60),
    "nllb": lambda: transformers.M2M100Config(
        d_model=32, encoder_layers=2, encoder_ffn_dim=48, encoder_attention_heads=2, vocab_size=60, decoder_layers=1,
        decoder_ffn_dim=8, scale_embedding=True,
    ),
}  # fmt: skip


def with_text(name: str, **given: Any) -> Any:
    text = {"hf_model_name": name, "hf_model_pretrained": False, **given}
    with patch("open_clip.hf_model.AutoConfig.from_pretrained", lambda *_, **__: CONFIGS[name]()):
        return randomized(open_clip.CustomTextCLIP(40, vision_cfg=VISION, text_cfg=text))


@pytest.mark.parametrize(
    ("name", "pooler", "projection"),
    [
        ("roberta", "mean_pooler", "mlp"),
        ("xlm-roberta", "mean_pooler", "linear"),
        ("mt5", "mean_pooler", "mlp"),
        ("nllb", "cls_pooler", "linear"),
    ],
)
def test_a_foreign_text_tower_is_equal_to_its_host_and_sums(name: str, pooler: str, projection: str) -> None:
    model = with_text(name, hf_pooler_type=pooler, hf_proj_type=projection)
    clip = ca.load(model)
    ids = torch.randint(2, 59, (3, 9), generator=torch.Generator().manual_seed(0))
    pad = 0 if name == "mt5" else 1
    ids[1, 5:] = pad
    ids[2, 3] = pad  # in the middle: what follows stands one place further in front
    with torch.no_grad():
        expected = model.encode_text(ids)
    torch.testing.assert_close(clip.encode_text(ids), expected, atol=1e-5, rtol=1e-4)
    parts = ca.decompose_text(clip, ids)
    assert float(parts.residue.max()) < 1e-5
    images = clip.encode_image(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
    if projection == "mlp":
        assert split_kind(clip.text_tower) == "one part, not split: an MLP stands behind its pooling"
        clip = ca.load(model, tokenizer=lambda texts: ids[: len(texts)])
        with pytest.raises(UnsupportedModel, match=r"its tokens have no shares of their own\. Type explain"):
            ca.pairs(clip, torch.zeros(1, 3, 32, 32), "a dog")
        return
    mean = "; through the mean of the words" if pooler == "mean_pooler" else ""
    assert split_kind(clip.text_tower) == f"every block, 2 × 2 heads{mean}"
    toward = parts.toward(images)
    torch.testing.assert_close(parts.tokens(images).sum(3), toward.heads, atol=1e-6, rtol=1e-4)
    assert float(toward.heads.abs().min()) > 0
    assert float(parts.tokens(images)[1, :, :, 5:].abs().max()) == 0  # nothing is read from padding


@pytest.mark.parametrize("fixed", [True, False])
def test_a_class_token_behind_the_words_sees_no_padding(fixed: bool) -> None:
    text = {**TEXT, "embed_cls": True, "pad_id": 0}
    model: Any = randomized(open_clip.CustomTextCLIP(40, vision_cfg=VISION, text_cfg=text, cast_dtype=None))
    model.text.correct_cls_mask = fixed
    clip = ca.load(model)
    ids = torch.randint(1, 59, (2, 7), generator=torch.Generator().manual_seed(0))
    ids[1, 4:] = 0
    with torch.no_grad():
        expected = model.encode_text(ids)
    parts = ca.decompose_text(clip, ids)
    torch.testing.assert_close(parts.total(), expected, atol=1e-5, rtol=1e-4)
    images = clip.encode_image(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
    hidden = parts.tokens(images)[1, :, :, 4:7]
    assert (float(hidden.abs().max()) == 0) == fixed  # the first released weights let the last word's place be seen


def test_a_trunk_with_an_mlp_behind_it_is_one_part_and_its_texts_are_split() -> None:
    import timm

    model = open_clip.CustomTextCLIP(40, vision_cfg=VISION, text_cfg=TEXT)
    visual: Any = TimmModel("convnext_atto", 40, pool="", proj="mlp")
    visual.trunk = timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 16, 24, 32), num_classes=0)
    visual.head.mlp = timm.layers.Mlp(32, 64, 40, bias=(True, False))
    visual.image_size = (64, 64)
    model.visual = visual
    model = randomized(model)
    clip = ca.load(model)
    assert split_kind(clip.vision) == "one part, not split: an MLP stands behind its pooling"
    assert split_kind(clip.text_tower) == "every block, 2 × 2 heads"
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    parts = ca.decompose(clip, pixels)
    with torch.no_grad():
        torch.testing.assert_close(parts.total(), model.encode_image(pixels), atol=1e-5, rtol=1e-4)
    with pytest.raises(ca.errors.ClipAnatomyError, match="Type"):
        ca.heatmap(clip, pixels, torch.randn(2, 40))
