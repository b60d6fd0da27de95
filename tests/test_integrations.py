"""Other programs read what we hand them: Captum, Parquet and LLaVA here; pytorch-grad-cam and FiftyOne where they are installed."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import open_clip_model, shake, transformers_model

import clip_anatomy as ca
from clip_anatomy.errors import BadInput, BadSpec
from clip_anatomy.images.geometry import Geometry
from clip_anatomy.integrations.fiftyone_dataset import over_picture
from clip_anatomy.loading.demo import examples

pytestmark = pytest.mark.usefixtures("one_thread")
TEXTS = ["a bird", "a fish", "a moon"]


@pytest.fixture(scope="module")
def clip() -> ca.Clip:
    return ca.load("demo")


@pytest.fixture(scope="module")
def pixels(clip: ca.Clip) -> torch.Tensor:
    return clip.pixels(examples()[:3])


# ---- Captum


def test_captums_attributions_sum_to_what_the_heads_read_from_patches(clip: ca.Clip, pixels: torch.Tensor) -> None:
    found = ca.to_captum(clip, TEXTS).attribute(pixels, target=[0, 1, 2])
    assert found.shape == pixels.shape
    tokens = ca.decompose(clip, pixels).tokens(clip.encode_text(TEXTS)).sum((1, 2))[:, 1:]
    torch.testing.assert_close(found.sum((1, 2, 3)), tokens.sum(1).diagonal(), atol=1e-6, rtol=1e-5)
    block = found[1, :, :8, 8:16]  # one patch
    torch.testing.assert_close(block, block.mean().expand_as(block), atol=1e-9, rtol=1e-6)


def test_captums_own_methods_and_metrics_take_ours(clip: ca.Clip, pixels: torch.Tensor) -> None:
    attr = pytest.importorskip(
        "captum.attr", reason="Captum is not installed. Type: pip install 'clip-anatomy[captum]'"
    )
    metrics = pytest.importorskip("captum.metrics")
    ours = ca.to_captum(clip, TEXTS)
    assert isinstance(ours, attr.Attribution)
    integrated, delta = attr.IntegratedGradients(ours.forward_func).attribute(
        pixels[:1], target=0, n_steps=64, return_convergence_delta=True
    )
    assert float(integrated.abs().sum()) > 0
    assert float(delta.abs()) < 0.05  # completeness: our forward has gradients
    smoothed = attr.NoiseTunnel(ours).attribute(pixels[:1], nt_samples=2, stdevs=1e-6, target=0)
    torch.testing.assert_close(smoothed, ours.attribute(pixels[:1], target=0), atol=1e-6, rtol=1e-2)
    moved = metrics.sensitivity_max(ours.attribute, pixels[:1], perturb_radius=0.01, n_perturb_samples=2, target=0)
    assert 0 < float(moved) < 1


def test_a_target_that_is_not_there_is_named(clip: ca.Clip, pixels: torch.Tensor) -> None:
    ours = ca.to_captum(clip, TEXTS)
    with pytest.raises(BadInput, match="Type: target=0 to 2"):
        ours.attribute(pixels)
    with pytest.raises(BadInput, match="target=3 of 3 images and 3 texts"):
        ours.attribute(pixels, target=3)


# ---- pytorch-grad-cam


def test_the_layer_for_grad_cam_has_the_activations_and_gradients_of_our_map(
    clip: ca.Clip, pixels: torch.Tensor
) -> None:
    model, (layer,), as_picture = ca.to_grad_cam(clip, TEXTS)
    kept: list[torch.Tensor] = []

    def keep(_: Any, __: Any, tokens: torch.Tensor) -> None:
        tokens.retain_grad()
        kept.append(tokens)

    layer.register_forward_hook(keep)
    scores = model(pixels)
    expected = F.normalize(clip.encode_image(pixels), dim=-1) @ F.normalize(clip.encode_text(TEXTS), dim=-1).T
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-4)
    scores[:, 1].sum().backward()
    tokens, gradient = as_picture(kept[0]), as_picture(kept[0].grad)
    map_ = (tokens * gradient.mean((2, 3), keepdim=True)).sum(1).relu()
    ours = ca.heatmap(clip, pixels, TEXTS, "gradcam").values[:, 1]
    assert float(ours.max()) > 0
    torch.testing.assert_close(map_, ours, atol=1e-7, rtol=1e-3)


@pytest.mark.slow
def test_the_real_pytorch_grad_cam_draws_our_map(clip: ca.Clip, pixels: torch.Tensor) -> None:
    package = pytest.importorskip(
        "pytorch_grad_cam", reason="pytorch-grad-cam is not installed. Type: pip install grad-cam"
    )
    from pytorch_grad_cam.utils.image import scale_cam_image
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    found = ca.to_grad_cam(clip, TEXTS)
    targets = [ClassifierOutputTarget(1)] * len(pixels)
    ours = ca.heatmap(clip, pixels, TEXTS, "gradcam").values[:, 1].numpy()
    expected = scale_cam_image(scale_cam_image(ours, pixels.shape[:1:-1]))  # once a layer, once over all layers
    with package.GradCAM(**found._asdict()) as cam:
        np.testing.assert_allclose(cam(input_tensor=pixels, targets=targets), expected, atol=1e-4)
    for name in ("GradCAMPlusPlus", "HiResCAM", "EigenCAM", "LayerCAM"):  # the others run as well
        with getattr(package, name)(**found._asdict()) as cam:
            drawn = cam(input_tensor=pixels, targets=targets)
        assert drawn.shape == (3, 64, 64)
        assert np.isfinite(drawn).all()


# ---- Parquet


def test_a_store_as_parquet_holds_rows_embeddings_and_head_scores(clip: ca.Clip, tmp_path: Path) -> None:
    pq = pytest.importorskip(
        "pyarrow.parquet", reason="pyarrow is not installed. Type: pip install 'clip-anatomy[atlas]'"
    )
    ca.index(clip, "world:12:test", tmp_path / "store", workers=1)
    store = ca.Store.open(tmp_path / "store", clip)
    file = ca.to_parquet(store, tmp_path / "store.parquet", TEXTS[:2], "7.3,2.0", clip=clip)
    table = pq.read_table(file)
    assert table["id"].to_pylist() == store.column("id")
    embedding = torch.tensor(table["embedding"].to_pylist())
    torch.testing.assert_close(embedding, store.embeddings(unit=True), atol=1e-6, rtol=1e-6)
    unit = F.normalize(clip.encode_text(TEXTS[:2]), dim=-1)
    torch.testing.assert_close(torch.tensor(table["cosine: a fish"].to_pylist()), (embedding @ unit.T)[:, 1])
    from clip_anatomy.data.open_dataset import picture_of

    rows = store.rows()
    pictures = [picture_of(row.source, row.path, row.id) for row in rows]
    shares = ca.decompose(clip, pictures).toward(clip.encode_text(TEXTS[:2])).heads
    for layer, head in ((7, 3), (2, 0)):
        found = torch.tensor(table[f"{layer}.{head}: a bird"].to_pylist())
        torch.testing.assert_close(found, shares[:, layer, head, 0], atol=2e-4, rtol=1e-2)
    with pytest.raises(BadInput, match="2 heads and 0 texts"):
        ca.to_parquet(store, tmp_path / "other.parquet", heads="7.3,2.0")
    assert not (tmp_path / "other.parquet").exists()


# ---- FiftyOne


def test_the_json_for_fiftyone_holds_the_numbers_of_the_explanation(clip: ca.Clip, tmp_path: Path) -> None:
    why = ca.explain(clip, examples()[:3], TEXTS)
    found = json.loads(ca.to_fiftyone(why, tmp_path / "dataset.json").read_text())
    for sample, one in zip(found["samples"], why.images, strict=True):
        assert Path(sample["filepath"]).is_file()
        assert sample["prediction"]["label"] == TEXTS[int(one.probability.argmax())]
        assert sample["cosine_a_fish"] == pytest.approx(float(one.cosine[1]))
        best, heads = int(one.probability.argmax()), [key for key in sample if key.startswith("head_")]
        assert len(heads) == 12
        for key in heads:
            layer, head = map(int, key.split("_")[1:])
            assert sample[key] == pytest.approx(float(one.heads[layer, head, best]))
        assert set(sample) == set(found["sample_fields"]) | {"metadata"}
    with pytest.raises(BadInput, match="FiftyOne shows files"):
        ca.to_fiftyone(ca.explain(clip, clip.pixels(examples()[:1]), TEXTS), tmp_path / "other.json")


def test_a_map_lies_over_the_whole_picture_where_the_model_looked() -> None:
    where = Geometry(picture=(200, 300), resized=(224, 336), offset=(0, 56), size=(224, 224))
    patches = torch.arange(4.0).view(2, 2) + 1
    drawn = over_picture(patches, where)
    assert drawn.shape == (64, 96)
    assert not drawn[:, :15].any()  # cut off on the left: 50 of 300 pixels
    assert not drawn[:, 81:].any()
    assert drawn[2, 18] == pytest.approx(1)
    assert drawn[61, 78] == pytest.approx(4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of its own libraries: mongoengine, pkg_resources
def test_the_real_fiftyone_opens_what_we_wrote(clip: ca.Clip, tmp_path: Path) -> None:
    fiftyone = pytest.importorskip(
        "fiftyone", reason="FiftyOne is not installed. Type: pip install fiftyone, in an environment of its own"
    )
    why = ca.explain(clip, examples()[:3], TEXTS)
    try:
        dataset = fiftyone.Dataset.from_json(str(ca.to_fiftyone(why, tmp_path / "dataset.json")), overwrite=True)
    except fiftyone.core.config.FiftyOneConfigError as error:
        pytest.skip(f"FiftyOne has no MongoDB here: {error}")
    assert len(dataset) == 3
    for sample, one in zip(dataset, why.images, strict=True):
        assert sample.prediction.label == TEXTS[int(one.probability.argmax())]
        assert sample.map_a_bird.map.shape == (64, 64)
        inner = sample.map_a_bird.map[4::8, 4::8]
        assert np.corrcoef(inner.ravel(), one.patches[..., 0].numpy().ravel())[0, 1] > 0.97
        assert sample.map_a_bird.range[1] >= float(one.patches.abs().max()) - 1e-6
    strongest = dataset.sort_by("cosine_a_bird", reverse=True).first()
    assert strongest.cosine_a_bird == pytest.approx(max(float(one.cosine[0]) for one in why.images))
    dataset.delete()


# ---- LLaVA


def llava(vision: str) -> Any:
    import transformers

    own = transformers_model(layers=3).config.vision_config.to_dict()
    kind = transformers.CLIPVisionConfig if vision == "clip" else transformers.SiglipVisionConfig
    text = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 50,
    }
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size")
    config = transformers.LlavaConfig(
        vision_config=kind(**{name: own[name] for name in names}),
        text_config=transformers.LlamaConfig(**text, num_key_value_heads=2),
        image_token_index=5,
        vision_feature_select_strategy="default" if vision == "clip" else "full",
    )
    return shake(transformers.LlavaForConditionalGeneration(config))


def hooked(model: Any, layer: int, held: dict[int, torch.Tensor | None]) -> Any:
    """The same by hand: a deep copy whose output projection is given other numbers for some heads."""
    own = copy.deepcopy(model)
    tower = own.model.vision_tower
    encoder = getattr(tower, "vision_model", tower).encoder

    def pre(_: Any, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        mixed = args[0].clone()
        for head, value in held.items():
            mixed[..., head * 8 : head * 8 + 8] = 0 if value is None else value
        return (mixed,)

    encoder.layers[layer].self_attn.out_proj.register_forward_pre_hook(pre)
    return own


def answers(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    patches = 16
    ids = torch.tensor([[1, *[5] * patches, 7, 8]] * 2)
    with torch.no_grad():
        logits = model(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids)).logits
        hidden = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
    return logits, torch.stack(hidden)


@pytest.mark.parametrize("vision", ["clip", "siglip"])
def test_an_edited_tower_in_a_llava_does_what_the_edit_says_and_nothing_else(vision: str) -> None:
    model = llava(vision)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modules = dict(model.named_modules())
    clip = ca.load(model.model.vision_tower)
    edit = ca.Edit.of(clip, "1.0", by="zero")
    edited = ca.with_edited_tower(model, edit)
    assert type(edited) is type(model)
    logits, hidden = answers(edited)
    by_hand = answers(hooked(model, 1, {0: None}))
    torch.testing.assert_close(hidden, by_hand[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits, by_hand[0], atol=1e-5, rtol=1e-5)
    plain = answers(model)
    assert torch.equal(hidden[:2], plain[1][:2])  # what lies before the edited layer
    assert float((logits - plain[0]).abs().max()) > 1e-3
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert dict(model.named_modules()) == modules
    mine, theirs = dict(edited.named_parameters()), dict(model.named_parameters())
    own = {name for name in theirs if mine[name].data_ptr() != theirs[name].data_ptr()}
    assert {name.rsplit(".", 2)[1] for name in own} == {"out_proj"}
    assert len(own) == 2
    assert not [name for name, module in edited.named_modules() if module._forward_pre_hooks]


def test_heads_held_at_their_mean_in_a_llava() -> None:
    model = llava("clip")
    clip = ca.load(model.model.vision_tower)
    means = ca.Means.of(clip, torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(2)))
    edit = ca.Edit.of(clip, "0.1,2.0", means, effect="rerun")
    held = {(one.layer, one.head): one.baseline[0] for one in edit.replacements}
    by_hand = hooked(hooked(model, 0, {1: held[0, 1]}), 2, {0: held[2, 0]})
    for found, expected in zip(answers(ca.with_edited_tower(model, edit)), answers(by_hand), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_what_cannot_be_put_back_is_said() -> None:
    model = llava("clip")
    clip = ca.load(model.model.vision_tower)
    moments = ca.Moments.of(ca.decompose(clip, torch.randn(5, 3, 32, 32)))
    with pytest.raises(BadSpec, match=r"its mean is of the embedding.*effect='rerun'"):
        ca.with_edited_tower(model, ca.Edit.of(clip, "1.0", moments))
    with pytest.raises(BadSpec, match="whole heads by zero or mean"):
        ca.with_edited_tower(model, ca.Edit.of(clip, "mlp=1", by="zero"))
    with pytest.raises(BadSpec, match="has no module 'vision'"):
        ca.with_edited_tower(model, ca.Edit.of(clip, "1.0", by="zero"), "vision")
    other = ca.load(open_clip_model(layers=3), parity=False)
    with pytest.raises(BadInput):
        ca.with_edited_tower(model, ca.Edit.of(other, "1.0", by="zero"))
