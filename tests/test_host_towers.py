"""Trunks that their own library runs (convolutions, windows): each place has its exact share, and what needs heads says what to type."""

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.timm_model import TimmModel
from PIL import Image
from test_family_methods import tokenizer
from tiny_families import TEXT, VISION, randomized

import clip_anatomy as ca
from clip_anatomy.errors import ClipAnatomyError, UnsupportedModel

pytestmark = pytest.mark.usefixtures("one_thread")
TRUNKS: dict[str, dict[str, Any]] = {
    "convnext_atto": {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)},
    "swin_tiny_patch4_window7_224": {"img_size": 64, "depths": (1, 1, 1, 1), "embed_dim": 12, "window_size": 2},
    "fastvit_t8": {"layers": (1, 1, 1, 1), "embed_dims": (16, 32, 64, 128)},
}


def live(trunk: str) -> Any:
    import timm

    model = open_clip.CustomTextCLIP(40, vision_cfg=VISION, text_cfg=TEXT)
    visual: Any = TimmModel("convnext_atto", 40, pool="avg", proj="linear")
    visual.trunk = timm.create_model(trunk, num_classes=0, **TRUNKS[trunk])
    visual.image_size = (64, 64)
    visual.head.proj = torch.nn.Linear(visual.trunk.num_features, 40, bias=False)
    model.visual = visual
    return randomized(model)


@pytest.mark.parametrize("trunk", TRUNKS)
def test_places_sum_to_the_hosts_embedding(trunk: str) -> None:
    model = live(trunk)
    clip = ca.load(model)
    digest = clip.digest
    for name, state in model.visual.named_buffers():  # BatchNorm's count is a number without an axis
        if name.endswith("running_mean"):
            state.add_(1.0)
            assert clip.digest != digest
            state.sub_(1.0)
            break
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.encode_image(pixels)
    torch.testing.assert_close(clip.encode_image(pixels), expected, rtol=1e-4, atol=1e-5)
    texts = torch.randn(3, 40, generator=torch.Generator().manual_seed(1))
    parts = ca.decompose(clip, pixels)
    torch.testing.assert_close(parts.total(), expected, rtol=1e-4, atol=1e-5)
    tokens = parts.tokens(texts)
    torch.testing.assert_close(tokens.sum(3), parts.toward(texts).heads, rtol=1e-4, atol=1e-5)
    assert tokens.std(3).min() > 0  # places differ
    maps = ca.heatmap(clip, pixels, texts, against="nothing").values
    torch.testing.assert_close(maps.sum((2, 3)), parts.toward(texts).heads.sum((1, 2)), rtol=1e-4, atol=1e-5)


def test_one_place_changed_changes_its_share_alone() -> None:
    """The share of a place is linear in what the trunk made there: ((x − mean) / σ ⊙ γ) P / N, by hand."""
    model = live("convnext_atto")
    clip = ca.load(model)
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    text = torch.nn.functional.normalize(torch.randn(1, 40, generator=torch.Generator().manual_seed(3)), dim=-1)
    with torch.no_grad():
        places = model.visual.trunk.forward_features(pixels)[0].flatten(1).T  # [place, channel]
        norm = model.visual.trunk.head.norm
        pooled = places.mean(0)
        deviation = (pooled.var(unbiased=False) + norm.eps).sqrt()
        centred = places - places.mean(1, keepdim=True)
        share = (centred / deviation * norm.weight / len(places)) @ model.visual.head.proj.weight.T @ text[0]
        share = share / model.encode_image(pixels).norm()
    found = ca.decompose(clip, pixels).tokens(text)[0, 0, 0, :, 0]
    torch.testing.assert_close(found[-len(share) :], share, rtol=1e-4, atol=1e-6)


def test_what_needs_heads_says_what_to_type() -> None:
    clip = ca.load(live("convnext_atto"))
    pixels = torch.randn(1, 3, 64, 64)
    for method in ("legrad", "sclip", "rollout"):
        with pytest.raises(ClipAnatomyError, match="Type"):
            ca.heatmap(clip, pixels, torch.randn(2, 40), method)


@pytest.fixture(scope="module")
def clip() -> Any:
    return ca.load(live("convnext_atto"), tokenizer=tokenizer)


def test_an_explanation_names_places_where_there_are_no_heads(clip: Any) -> None:
    found = ca.explain(clip, Image.linear_gradient("L").convert("RGB"), ["a dog", "a cat"])
    said = found.summary()
    assert "head" not in said
    assert said.count("patch row") == 4
    each = found[0].contrast()
    yes = each.ranked_parts(0)[0]
    row, col = (int(part) for part in yes.name.split()[2::2])
    assert float(each.patches[row, col, 0]) == yes.value == float(each.patches[..., 0].max())
    assert "layers and heads" not in "".join(found._repr_html_())


def test_a_store_without_heads_is_searched_whole_and_head_studies_say_what_to_type(clip: Any, tmp_path: Path) -> None:
    rows = ["path,label"]
    for at in range(6):
        Image.linear_gradient("L").rotate(60 * at).convert("RGB").save(tmp_path / f"{at}.png")
        rows.append(f"{at}.png,{'left' if at < 3 else 'right'}")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    ca.index(clip, tmp_path, tmp_path / "store", labels=tmp_path / "labels.csv")
    found = ca.search(tmp_path / "store", tmp_path / "2.png", k=5, clip=clip)
    unit = torch.nn.functional.normalize(clip.encode_image([tmp_path / f"{at}.png" for at in range(6)]), dim=-1)
    expected = (unit @ unit[2]).argsort(descending=True).tolist()[1:]
    assert [int(Path(hit.row.id).stem) for hit in found.hits] == expected
    assert "whole embedding" in found.summary()
    for needs, instead in (
        (lambda: ca.atlas(tmp_path / "store", clip), "concepts"),
        (lambda: ca.ablate(tmp_path / "store", study="heads", model=clip), "tower='text'"),
        (lambda: ca.repair(tmp_path / "store", model=clip), "tower='text'"),
    ):
        with pytest.raises(UnsupportedModel, match=f"has no heads: all that it writes is one part. Type .*{instead}"):
            needs()


def test_a_tower_that_is_one_part_explains_and_says_what_it_has_not(tmp_path: Path) -> None:
    model = live("convnext_atto")
    visual: Any = model.visual
    visual.head = torch.nn.Sequential()
    mlp = torch.nn.Sequential(torch.nn.Linear(32, 16), torch.nn.GELU(), torch.nn.Linear(16, 40))
    visual.head.add_module("mlp", mlp)
    clip = ca.load(randomized(model), tokenizer=tokenizer)
    picture = Image.linear_gradient("L").convert("RGB")
    found = ca.explain(clip, picture, ["a dog", "a cat"])
    assert [one.name for one in found[0].ranked_parts(0)] == ["the whole embedding"]
    assert found[0].ranked_parts(0)[0].value == float(found[0].cosine[0])
    assert abs(float(found[0].residue.abs().max())) < 1e-6
    page = found._repr_html_()
    assert "the whole embedding" in page
    assert "patches’ yes" not in page
    assert (found.save(tmp_path / "report", pictures=True) / "index.html").is_file()
    for needs in (
        lambda: ca.index(clip, tmp_path, tmp_path / "store"),
        lambda: ca.Edit.of(clip, "0.0", by="zero"),
        lambda: ca.replace_parts(clip, picture, "0.0", by="zero"),
        lambda: ca.layer_maps(clip, picture, torch.randn(2, 40)),
    ):
        with pytest.raises(
            UnsupportedModel, match=r"is one part .* it has no heads\. Type encode_image\(images\) or explain"
        ):
            needs()
