"""CLIP-ResNets: opened from everywhere ViTs are, equal to open_clip, split exactly, and what has no meaning on them refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tiny_resnet import CONFIG, resnet_model, shake
from torch import Tensor

import clip_anatomy as ca
from clip_anatomy.loading.parity import relative
from clip_anatomy.split.basis import basis_of, coordinates_of
from clip_anatomy.towers.resnet import ResNet

pytestmark = pytest.mark.usefixtures("one_thread")


def tokenizer(texts: list[str]) -> Tensor:
    return torch.tensor([[1, 2 + len(t), 99] for t in texts])


@pytest.fixture(autouse=True)
def _same_pictures_every_time() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def model() -> Any:
    return resnet_model()


@pytest.fixture(scope="module")
def clip(model: Any) -> ca.Clip:
    return ca.load(model, tokenizer=tokenizer)


def real(name: str) -> Any:
    import open_clip

    return shake(open_clip.CLIP(**open_clip.get_model_config(name)))


@pytest.fixture(scope="module")
def rn50() -> Any:
    return real("RN50")


def agree(model: Any, pixels: Tensor) -> ca.Clip:
    clip = ca.load(model)
    with torch.no_grad():
        theirs = model.encode_image(pixels)
    assert clip.proof is not None
    assert clip.proof.holds
    assert relative(clip.encode_image(pixels), theirs) <= 1e-5
    parts = ca.decompose(clip, pixels)
    assert parts.heads.shape == (len(pixels), 1, clip.vision.heads, clip.vision.embed)
    assert relative(parts.total(), theirs) <= 1e-5
    return clip


def test_equal_to_open_clip(rn50: Any) -> None:
    clip = agree(rn50, torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1)))
    assert (clip.patch, clip.vision.heads, clip.vision.d) == ((32, 32), 32, 64)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "heads"), [("RN101", 224, 32), ("RN50x4", 288, 40), ("RN50x16", 384, 48), ("RN50x64", 448, 64)]
)
def test_the_large_ones_are_equal_to_open_clip(name: str, size: int, heads: int) -> None:
    clip = agree(real(name), torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1)))
    assert (clip.patch, clip.vision.heads, clip.vision.d) == ((32, 32), heads, 64)


@settings(max_examples=12, deadline=None)
@given(
    layers=st.lists(st.integers(1, 2), min_size=4, max_size=4),
    width=st.sampled_from([2, 4]),
    head_width=st.sampled_from([16, 32]),
    grid=st.integers(1, 3),
    images=st.integers(1, 2),
)
def test_any_depth_and_width(layers: list[int], width: int, head_width: int, grid: int, images: int) -> None:
    model = resnet_model(layers=layers, width=width, head_width=head_width, image_size=32 * grid)
    agree(model, torch.randn(images, 3, 32 * grid, 32 * grid, generator=torch.Generator().manual_seed(grid)))


def test_batchnorm_uses_the_statistics_of_the_training(model: Any, clip: ca.Clip) -> None:
    pixels = torch.randn(3, 3, 96, 96)
    together = clip.encode_image(pixels)
    alone = torch.cat([clip.encode_image(one[None]) for one in pixels])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    running = model.visual.layer2[0].bn2.running_mean
    assert isinstance(clip.vision, ResNet)
    assert clip.vision.stages[1][0].conv2.mean.data_ptr() == running.data_ptr(), "borrowed, not copied"


def test_the_users_model_is_not_changed(model: Any) -> None:
    before = {k: v.clone() for k, v in model.state_dict().items()}
    clip = ca.load(model, tokenizer=tokenizer)
    ca.decompose(clip, torch.randn(1, 3, 128, 96), texts=["a", "bc"])
    for method in ("surgery", "maskclip", "decomposition"):
        ca.heatmap(clip, torch.randn(1, 3, 96, 160), ["a", "bc"], method=method)
    after = model.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in before.items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_a_model_in_training_mode_is_refused_before_it_could_change() -> None:
    model = resnet_model().train()
    before = model.visual.bn1.running_mean.clone()
    with pytest.raises(ca.errors.UnsupportedModel, match=r"training mode.*Type: model\.eval\(\)"):
        ca.load(model)
    assert torch.equal(before, model.visual.bn1.running_mean)


def test_frozen_batchnorms_are_read_too() -> None:
    model = resnet_model()
    model.visual.lock(freeze_bn_stats=True)
    agree(model, torch.randn(1, 3, 96, 96))


def test_what_is_left_over_or_not_a_number_is_named() -> None:
    model = resnet_model()
    model.visual.layer3[0].register_buffer("gate", torch.ones(1))
    with pytest.raises(ca.errors.UnsupportedModel, match=r"the split does not read: visual\.layer3\.0\.gate"):
        ca.load(model)
    model = resnet_model()
    model.visual.layer1[0].bn1.running_var[0] = float("nan")
    with pytest.raises(ca.errors.BadCheckpoint, match=r"visual\.layer1\.0\.bn1\.running_var' holds NaN"):
        ca.load(model)
    model = resnet_model()
    model.visual.layer2[0].act2 = torch.nn.GELU()
    with pytest.raises(ca.errors.UnsupportedModel, match="found the activation GELU in a CLIP-ResNet"):
        ca.load(model)


def test_other_dtypes() -> None:
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.bfloat16, 5e-2)):
        model = resnet_model().to(dtype)
        clip = ca.load(model)
        assert clip.proof is not None
        assert clip.proof.image <= tolerance
        assert clip.vision.dtype == dtype


# ---- where they come from

WORDS = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}


def same(clip: ca.Clip, model: Any) -> None:
    from open_clip import tokenize

    pixels = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        assert relative(clip.encode_image(pixels), model.encode_image(pixels)) <= 1e-5
        assert relative(clip.encode_text(["a dog", "b"]), model.encode_text(tokenize(["a dog", "b"]))) <= 1e-5


def test_files_of_open_clip_and_openai(tmp_path: Path) -> None:
    plain, quick = resnet_model(text=WORDS), resnet_model(text=WORDS, quick_gelu=True, head_width=64, width=8)
    save_file(plain.state_dict(), tmp_path / "mine.safetensors")
    (tmp_path / "mine.json").write_text(json.dumps({**CONFIG, "text_cfg": WORDS}))
    same(ca.load(tmp_path / "mine.safetensors"), plain)
    counted = {k: v for k, v in plain.state_dict().items() if not k.endswith("num_batches_tracked")}
    save_file(counted, tmp_path / "mine.safetensors")
    same(ca.load(tmp_path / "mine.safetensors"), plain)
    marks = {"input_resolution": 96, "context_length": 77, "vocab_size": 49408}
    torch.save({**quick.state_dict(), **{k: torch.tensor(v) for k, v in marks.items()}}, tmp_path / "RN.pt")
    opened = ca.load(tmp_path / "RN.pt")
    same(opened, quick)
    assert opened.text_tower.activation == "quick_gelu"
    assert opened.vision.heads == 8 * 32 // 64
    torch.save(plain.state_dict(), tmp_path / "unnamed.pt")
    with pytest.raises(
        ca.errors.BadCheckpoint, match=r"no config says.*load\('open_clip:RN50', weights='unnamed.pt'\)"
    ):
        ca.load(tmp_path / "unnamed.pt")


def test_a_folder_that_open_clip_saved(tmp_path: Path) -> None:
    model = resnet_model(text=WORDS)
    save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    config = {"model_cfg": {**CONFIG, "text_cfg": WORDS}, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    clip = ca.load(tmp_path)
    same(clip, model)
    assert clip.preprocess.size == (96, 96)
    assert clip.digest == ca.load(model).digest != ca.load(resnet_model(text=WORDS, seed=1)).digest


def test_a_named_one_with_local_weights(rn50: Any, tmp_path: Path) -> None:
    save_file(rn50.state_dict(), tmp_path / "rn50.safetensors")
    clip = ca.load("open_clip:RN50", weights=tmp_path / "rn50.safetensors")
    assert (clip.name, clip.preprocess.size) == ("open_clip:RN50", (224, 224))
    with pytest.raises(ca.errors.BadCheckpoint, match="belong together"):
        ca.load("open_clip:RN101", weights=tmp_path / "rn50.safetensors")
    with pytest.raises(ca.errors.BadCheckpoint, match="trained with QuickGELU.*Type: open_clip:RN50x16-quickgelu"):
        ca.load("open_clip:RN50x16/openai")


# ---- the split


def by_hand(model: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The attention pool written out head by head and token by token in float64: [image, head, token, embed] and c_proj's bias."""
    with torch.no_grad():
        seen = model.visual.layer4(
            model.visual.layer3(model.visual.layer2(model.visual.layer1(model.visual.stem(pixels))))
        )
        pool = model.visual.attnpool.double()
        places = seen.double().flatten(2).transpose(1, 2)
        x = torch.cat([places.mean(1, keepdim=True), places], 1) + pool.positional_embedding
        d = x.shape[-1] // pool.num_heads
        found = []
        for h in range(pool.num_heads):
            rows = slice(h * d, (h + 1) * d)
            q, k, v = (x @ p.weight[rows].T + p.bias[rows] for p in (pool.q_proj, pool.k_proj, pool.v_proj))
            attention = (q[:, :1] @ k.transpose(1, 2) / d**0.5).softmax(-1)[:, 0]
            found.append((attention[..., None] * v) @ pool.c_proj.weight[:, rows].T)
        bias = pool.c_proj.bias.clone()
        model.visual.attnpool.float()
    return torch.stack(found, 1), bias


def test_the_parts_are_the_pool_written_out(model: Any, clip: ca.Clip) -> None:
    pixels = torch.randn(2, 3, 96, 96)
    each, bias = by_hand(model, pixels)
    parts = ca.decompose(clip, pixels)
    torch.testing.assert_close(parts.heads[:, 0].double(), each.sum(2), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(parts.bias.double(), bias.expand(2, -1), atol=1e-6, rtol=1e-5)
    assert parts.mlps.shape == (2, 0, 24)
    assert not parts.input_embedding.any()
    even = ca.decompose(clip, pixels, "official")
    spread = each.sum(2) + bias / clip.vision.heads
    torch.testing.assert_close(even.heads[:, 0].double(), spread, atol=1e-5, rtol=1e-4)
    assert not even.bias.any()
    text = torch.randn(3, 24)
    unit = torch.nn.functional.normalize(text, dim=-1).double()
    length = parts.embedding.double().norm(dim=-1).view(-1, 1, 1, 1)
    torch.testing.assert_close(parts.tokens(text)[:, 0].double(), each @ unit.T / length, atol=1e-6, rtol=1e-4)
    own = each[:, :, 0].sum(1, keepdim=True)
    torch.testing.assert_close(parts.class_to_class().double(), own, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("convention", ["centered", "official"])
@pytest.mark.parametrize("size", [(96, 96), (64, 160), (32, 32)])
def test_everything_sums_at_any_resolution(clip: ca.Clip, convention: Any, size: tuple[int, int]) -> None:
    pixels, text = torch.randn(2, 3, *size), torch.randn(3, 24)
    parts = ca.decompose(clip, pixels, convention, texts=text)
    assert (parts.residue < 1e-5).all()
    toward = parts.toward(text)
    cosine = torch.nn.functional.cosine_similarity(clip.encode_image(pixels)[:, None], text[None], dim=-1)
    torch.testing.assert_close(toward.total(), cosine, atol=1e-5, rtol=1e-4)
    tokens = parts.tokens(text)
    assert tokens.shape == (2, 1, 8, 1 + size[0] * size[1] // 1024, 3)
    torch.testing.assert_close(tokens.sum(3), toward.heads, atol=1e-6, rtol=1e-4)


def test_sides_are_multiples_of_the_patch(clip: ca.Clip) -> None:
    with pytest.raises(ca.errors.BadImage, match="multiples of the patch 32 × 32.*Type: images of 96 × 64"):
        clip.encode_image(torch.randn(1, 3, 100, 90))


@pytest.mark.parametrize("convention", ["centered", "official"])
def test_bases_moments_and_textspan(clip: ca.Clip, convention: Any) -> None:
    parts = ca.decompose(clip, torch.randn(24, 3, 96, 96), convention)
    basis = basis_of(clip.vision, convention)
    shares = parts.heads / parts.embedding.norm(dim=-1)[:, None, None, None]
    coordinates = coordinates_of(basis, parts.source.network, parts.trace)
    torch.testing.assert_close(basis.restore(coordinates).float(), shares, atol=1e-5, rtol=1e-4)
    moments = ca.Moments.of(parts, basis=basis)
    assert moments.mean.shape == (1, 8, min(16 + 3 * (convention == "official"), 24))
    found = ca.textspan(moments, torch.randn(30, 24), texts_per_head=3)
    assert found.indices.shape == (1, 8, 3)


def test_a_store_of_them_is_searched_and_explains_why(tmp_path: Path) -> None:
    from PIL import Image

    from clip_anatomy.retrieval.patch_attribution import patch_attribution

    clip = ca.load(resnet_model(text=WORDS))
    for i in range(4):
        noise = torch.randint(0, 255, (96, 96, 3), generator=torch.Generator().manual_seed(i), dtype=torch.uint8)
        Image.fromarray(noise.numpy()).save(tmp_path / f"{i}.png")
    assert ca.index(clip, tmp_path, tmp_path / "store").done == 4
    store = ca.Store.open(tmp_path / "store")
    assert (store.manifest.depth, store.manifest.layers, store.manifest.heads) == (1, (0,), 8)
    found = ca.search(store, "text:a dog", clip=clip, heads="all")
    assert len(found.hits) == 4
    told = patch_attribution(found, found.hits[0])
    assert told.patches.shape == (3, 3)
    assert told.total == pytest.approx(found.hits[0].score, abs=2e-3)
    with pytest.raises(ca.errors.BadSpec, match="no MLPs"):
        ca.index(clip, tmp_path, tmp_path / "other", keep="heads,mlps")


def test_check_and_explain(clip: ca.Clip) -> None:
    from clip_anatomy.split.check import check
    from clip_anatomy.split.picture_explanation import explain_pixels, summands

    found = check(clip).claims
    assert len(found) == 17
    assert all(each.holds for each in found)
    one = explain_pixels(clip, torch.randn(1, 3, 96, 96), clip.encode_text(["a", "bc"]))[0]
    assert len(one.ranked_parts(0)) == 8
    assert sum(v.value for v in summands(one, 0)) == pytest.approx(float(one.cosine[0]), abs=1e-5)


def test_what_needs_a_transformer_says_what_works_instead(clip: ca.Clip) -> None:
    with pytest.raises(ca.errors.UnsupportedModel, match="is a CLIP-ResNet.*Type one of: encode_image, decompose"):
        _ = clip.image_tower
    assert ca.load(tiny.open_clip_model()).image_tower is not None
