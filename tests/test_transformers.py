"""Every class of transformers: opened with its proof, split exactly, and as saved by its older and newer versions."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_transformers import CONFIGS, tiny_transformers

import clip_anatomy as ca
from clip_anatomy.loading.transformers_hosts import CLASSES
from clip_anatomy.split.parts import decompose_tower

pytestmark = pytest.mark.usefixtures("one_thread")


def inputs_of(tower: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    if tower.kind == "image":
        return torch.randn(
            2, 3, *(n * side for n, side in zip(tower.grid, tower.patch, strict=True)), generator=generator
        )
    found = torch.randint(4, 58, (3, 8), generator=generator)
    found[:, 5] = 59
    found[:, 6:] = 1
    return found


def host_embedding(model: Any, kind: str, inputs: torch.Tensor) -> torch.Tensor:
    """What a person writes with transformers alone."""
    name = type(model).__name__
    with torch.no_grad():
        if kind == "image":
            if name in ("Siglip2Model", "Siglip2VisionModel"):
                n, side = len(inputs), 8
                rows, cols = inputs.shape[2] // side, inputs.shape[3] // side
                patches = (
                    inputs.reshape(n, 3, rows, side, cols, side).permute(0, 2, 4, 3, 5, 1).reshape(n, rows * cols, -1)
                )
                given = {
                    "pixel_values": patches,
                    "pixel_attention_mask": torch.ones(n, rows * cols, dtype=torch.long),
                    "spatial_shapes": torch.tensor([[rows, cols]] * n),
                }
            else:
                given = {"pixel_values": inputs}
            if name == "BlipForImageTextRetrieval":
                return model.vision_proj(model.vision_model(**given).last_hidden_state[:, 0])
        else:
            given = {"input_ids": inputs}
            if any(word in name for word in ("Chinese", "Alt", "Align", "Blip")):
                given["attention_mask"] = (inputs != 1).long()
            if name == "BlipForImageTextRetrieval":
                return model.text_proj(model.text_encoder(**given).last_hidden_state[:, 0])
        features = getattr(model, f"get_{kind}_features", None)
        found = model(**given) if features is None else features(**given)
    if isinstance(found, torch.Tensor):
        return found
    if name in ("ViTModel", "BlipVisionModel", "ChineseCLIPTextModel", "AlignTextModel", "BlipTextModel"):
        return found.last_hidden_state[:, 0]
    return next(found[key] for key in ("image_embeds", "text_embeds", "pooler_output") if key in found)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_class_opens_with_its_proof_and_splits_exactly(name: str) -> None:
    model = tiny_transformers(name)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    clip = ca.load(model)
    assert clip.proof is not None
    assert clip.proof.largest < 1e-12
    for tower in (clip.vision, clip.text_tower):
        if tower.architecture == "absent":
            continue
        inputs = inputs_of(tower)
        expected = host_embedding(model, tower.kind, inputs)
        toward = torch.randn(4, tower.embed, generator=torch.Generator().manual_seed(2))
        for convention in ("centered", "official"):
            parts = decompose_tower(tower, inputs, convention, toward)
            error = (parts.total() - expected).norm(dim=-1) / expected.norm(dim=-1)
            assert float(error.max()) < 1e-5
            if parts.heads.numel():
                assert float(parts.heads.abs().amin((0, 3)).min()) > 0  # every head of every layer has a share
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())


def test_every_class_of_the_table_is_tried_here() -> None:
    assert {name.partition(",")[0] for name in CONFIGS} == {one for names in CLASSES.values() for one in names}


@pytest.mark.parametrize("name", ["CLIPVisionModel", "CLIPTextModel", "SiglipVisionModel", "SiglipTextModel"])
@pytest.mark.parametrize("version", ["4", "5.6"])
def test_a_tower_alone_saved_by_an_older_or_a_newer_version_opens(name: str, version: str, tmp_path: Path) -> None:
    """Version 4 saves towers alone as `vision_model.…`, 5.6 and later without it (seen with 4.56.2 and 5.24.0)."""
    model = tiny_transformers(name)
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    prefix = "vision_model." if "Vision" in name else "text_model."
    bare = {key.removeprefix(prefix): value for key, value in load_file(file).items()}
    save_file({f"{prefix}{k}": v for k, v in bare.items()} if version == "4" else bare, file, {"format": "pt"})
    clip = ca.load(str(tmp_path))
    tower = clip.vision if "Vision" in name else clip.text_tower
    inputs = inputs_of(tower)
    torch.testing.assert_close(tower.encode(inputs), host_embedding(model, tower.kind, inputs), atol=1e-5, rtol=1e-5)


OLDER = {
    "Dinov2Model": {
        "attention.q_proj": "attention.attention.query",
        "attention.k_proj": "attention.attention.key",
        "attention.v_proj": "attention.attention.value",
        "attention.o_proj": "attention.output.dense",
    },
    "DINOv3ViTModel": {"model.layer": "layer"},
    "ViTModel": {
        "layers.": "encoder.layer.",
        "attention.q_proj": "attention.attention.query",
        "attention.k_proj": "attention.attention.key",
        "attention.v_proj": "attention.attention.value",
        "attention.o_proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    },
}
"""Names of live modules in 5.24.0 → in 4.56.2."""


@pytest.mark.parametrize("name", OLDER)
def test_a_live_vit_of_an_older_version_is_read_by_its_names(name: str) -> None:
    from clip_anatomy.loading.host import BorrowedTensors, tensors_of
    from clip_anatomy.loading.transformers_vit import APART, vit_tower

    model = tiny_transformers(name)
    renamed: dict[str, torch.Tensor] = {}
    for key, value in tensors_of(model).items():
        for new, old in OLDER[name].items():
            key = key.replace(new, old)  # noqa: PLW2901
        renamed[key] = value
    tensors = BorrowedTensors(renamed)
    tower = vit_tower(tensors, model.config)
    tensors.refuse_left_over(name, APART)
    inputs = inputs_of(tower)
    torch.testing.assert_close(tower.encode(inputs), host_embedding(model, "image", inputs), atol=1e-5, rtol=1e-5)


def test_the_fused_gate_of_an_older_dinov2_is_read_in_its_order() -> None:
    from clip_anatomy.loading.host import BorrowedTensors, tensors_of
    from clip_anatomy.loading.transformers_vit import vit_tower

    model = tiny_transformers("Dinov2Model, SwiGLU")
    renamed: dict[str, torch.Tensor] = {}
    for key, value in tensors_of(model).items():
        if ".gate_proj." in key:
            whole = torch.cat([value, model.state_dict()[key.replace("gate_proj", "up_proj")]])
            renamed[key.replace("gate_proj", "weights_in")] = whole
        elif ".up_proj." not in key:
            renamed[key.replace("down_proj", "weights_out")] = value
    tower = vit_tower(BorrowedTensors(renamed), model.config)
    inputs = inputs_of(tower)
    torch.testing.assert_close(tower.encode(inputs), host_embedding(model, "image", inputs), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["Dinov2Model", "Dinov2WithRegistersModel", "DINOv3ViTModel"])
def test_a_vit_at_another_size_places_its_patches_as_its_host_does(name: str) -> None:
    model = tiny_transformers(name)
    pixels = torch.randn(1, 3, 24, 56, generator=torch.Generator().manual_seed(3))
    found = ca.load(model).encode_image(pixels)
    torch.testing.assert_close(found, host_embedding(model, "image", pixels), atol=1e-5, rtol=1e-5)


def test_a_sharded_folder_opens(tmp_path: Path) -> None:
    model = tiny_transformers("SiglipModel")
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 3
    assert (tmp_path / "model.safetensors.index.json").is_file()
    pixels = inputs_of(ca.load(model).vision)
    assert torch.equal(ca.load(str(tmp_path)).encode_image(pixels), ca.load(model).encode_image(pixels))


def test_the_image_tower_of_a_larger_model_opens_by_the_attribute_that_is_named() -> None:
    import transformers
    from tiny_transformers import TEXT, VISION

    model = transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(
            vision_config=transformers.SiglipVisionConfig(**VISION),
            text_config=transformers.LlamaConfig(**TEXT, num_key_value_heads=2),
            image_token_index=5,
        )
    ).eval()
    with pytest.raises(ca.errors.UnsupportedModel, match=r"Type: load\(model\.model\.vision_tower\)"):
        ca.load(model)
    clip = ca.load(model.model.vision_tower)
    pixels = inputs_of(clip.vision)
    with torch.no_grad():
        expected = model.model.vision_tower(pixels).pooler_output
    torch.testing.assert_close(ca.decompose(clip, pixels).total(), expected, atol=1e-5, rtol=1e-5)


def test_a_folder_of_a_pipeline_names_the_models_inside(tmp_path: Path) -> None:
    """An IP-Adapter keeps its CLIPVisionModelWithProjection in `image_encoder/`."""
    tiny_transformers("CLIPVisionModelWithProjection").save_pretrained(tmp_path / "image_encoder")
    with pytest.raises(ca.errors.BadCheckpoint, match=r"Type one of them: .*image_encoder$"):
        ca.load(str(tmp_path))
    assert ca.load(str(tmp_path / "image_encoder")).proof.holds


def test_a_llava_folder_says_how_its_tower_is_reached(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"], '
        '"vision_config": {"model_type": "clip_vision_model"}, "text_config": {"model_type": "llama"}}'
    )
    with pytest.raises(ca.errors.UnsupportedModel, match=r"around a CLIPVisionModel\. Type in Python: load\("):
        ca.load(str(tmp_path))


@pytest.mark.parametrize(
    "name",
    ["ChineseCLIPModel", "AlignModel", "BlipForImageTextRetrieval", "Siglip2Model", "DINOv3ViTModel", "ViTModel"],
)
def test_methods_run_on_the_image_towers_or_refuse_in_one_sentence(name: str) -> None:
    clip = ca.load(tiny_transformers(name))
    pixels = torch.randn(6, *inputs_of(clip.vision).shape[1:], generator=torch.Generator().manual_seed(4))
    texts = torch.randn(8, clip.vision.embed, generator=torch.Generator().manual_seed(5))
    parts = ca.decompose(clip, pixels)
    span = ca.textspan(ca.Moments.of(parts), torch.nn.functional.normalize(texts, dim=-1), 2)
    assert span.indices.shape[:2] == (clip.vision.layers, clip.vision.heads)
    maps = ca.heatmap(clip, pixels, texts[:2], method="decomposition", against="nothing").values
    own = parts.tokens(texts[:2]).sum((1, 2))[:, clip.vision.own :]
    torch.testing.assert_close(maps.flatten(2).transpose(1, 2), own, atol=1e-5, rtol=1e-4)
    if name == "AlignModel":
        with pytest.raises(ca.errors.UnsupportedModel, match=r"Type one of: decomposition"):
            ca.heatmap(clip, pixels, texts[:2], method="surgery")
    else:
        surgery = ca.heatmap(clip, pixels, texts[:2], method="surgery").values
        assert surgery.shape[-2:] == clip.vision.grid
        assert bool(surgery.isfinite().all())
    without = ca.replace_parts(clip, pixels, "0.0", by="zero")
    torch.testing.assert_close(without, clip.encode_image(pixels) - parts.heads[:, 0, 0], atol=1e-4, rtol=1e-4)
