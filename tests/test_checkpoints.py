"""Checkpoints and models as training programs leave them: weights averaged beside a model, Lightning's, adapters, hooks of a launcher."""

import copy
import functools
import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from test_load import MODEL_CFG, same, saved_model
from tiny_transformers import tiny_transformers
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import clip_anatomy as ca
from clip_anatomy.errors import BadCheckpoint, UnsupportedModel
from clip_anatomy.loading.checkpoint import read_state

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model() -> Any:
    return saved_model()


def stepped(model: Any) -> Any:
    """The weights after one step, and what AdamW keeps beside them."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    (
        model.encode_image(torch.zeros(1, 3, 32, 32)).sum() + model.encode_text(torch.zeros(1, 77).long()).sum()
    ).backward()
    optimizer.step()
    return optimizer.state_dict()


def written(folder: Path, content: Any) -> Path:
    (folder / "mine.json").write_text(json.dumps(MODEL_CFG))
    torch.save(content, folder / "mine.pt")
    return folder / "mine.pt"


def test_a_checkpoint_of_lightning_with_its_optimiser_opens(model: Any, tmp_path: Path) -> None:
    """Laid out as lightning 2 writes it: the module's attribute in front of every name, and its own entries beside the weights."""
    content = {
        "epoch": 1,
        "global_step": 5,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {f"net.clip.{name}": value for name, value in model.state_dict().items()},
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"current": {"completed": 1}}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_path": ""}},
        "optimizer_states": [stepped(model)],
        "lr_schedulers": [{"last_epoch": 1, "_last_lr": [0.1]}],
        "hyper_parameters": {"lr": 0.1},
    }
    same(ca.load(written(tmp_path, content)), model)


def test_averaged_weights_beside_a_model_are_a_choice_and_the_message_says_how(model: Any, tmp_path: Path) -> None:
    averaged = {name: value * 0.5 if value.is_floating_point() else value for name, value in model.state_dict().items()}
    path = written(tmp_path, {"model": model.state_dict(), "model_ema": averaged, "optimizer": stepped(model)})
    with pytest.raises(
        BadCheckpoint, match=r"several state dicts: model, model_ema\. .*torch\.load\(FILE\)\['model'\]"
    ):
        ca.load(path)
    written(tmp_path, torch.load(path)["model"])
    same(ca.load(path), model)
    # timm's and open_clip's trainers call the model's own `state_dict`: that one is meant.
    same(ca.load(written(tmp_path, {"state_dict": model.state_dict(), "state_dict_ema": averaged})), model)


def test_a_model_that_averages_weights_opens_as_what_it_averaged(tmp_path: Path) -> None:
    model: Any = tiny.open_clip_model()
    mean = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    mean.update_parameters(model)
    clip = ca.load(mean)
    assert clip.host is mean.module
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(clip.encode_image(pixels), mean.module.encode_image(pixels), atol=1e-5, rtol=1e-5)
    with pytest.raises(BadCheckpoint, match=r"'module\.', and others stand beside them \(n_averaged\).*model\.module"):
        ca.load(written(tmp_path, mean.state_dict()))


def test_an_adapter_without_its_model_says_how_the_two_are_merged(tmp_path: Path) -> None:
    """The two files that peft 0.21 writes."""
    from safetensors.torch import save_file

    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": "openai/clip-vit-base-patch32", "r": 4})
    )
    save_file({"base_model.model.lora_A.weight": torch.zeros(4, 4)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(BadCheckpoint, match=r"adapter .*of openai/clip-vit-base-patch32.*merge_and_unload"):
        ca.load(tmp_path)


def test_hooks_of_a_launcher_change_nothing_and_weights_kept_elsewhere_are_named() -> None:
    """What accelerate 1.15 leaves on a module: a hook, the forward that was there, and a partial of its own in its place."""
    model = tiny_transformers("CLIPVisionModelWithProjection")
    layer: Any = model.vision_model.encoder.layers[0].mlp.fc1
    layer._hf_hook, layer._old_forward = object(), layer.forward
    layer.forward = functools.partial(lambda module, *given: module._old_forward(*given), layer)
    clip = ca.load(model)
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(pixels).image_embeds
    torch.testing.assert_close(ca.decompose(clip, pixels).total(), expected, atol=1e-5, rtol=1e-5)
    layer.weight = torch.nn.Parameter(layer.weight.to("meta"))
    with pytest.raises(UnsupportedModel, match=r"fc1\.weight' is kept elsewhere by accelerate.*Type: .*remove_hook"):
        ca.load(model)


def test_a_state_dict_is_found_however_deep_and_several_are_named_by_their_keys(model: Any, tmp_path: Path) -> None:
    state = model.state_dict()
    deep = {
        "trainer": {
            "checkpoint": {"model": {f"module.{name}": one for name, one in state.items()}, "optimizer": stepped(model)}
        }
    }
    assert {*read_state(written(tmp_path, deep))} == {*state}
    with pytest.raises(
        BadCheckpoint,
        match=r"several state dicts: net\.student, net\.teacher\. .*torch\.load\(FILE\)\['net'\]\['student'\]",
    ):
        read_state(written(tmp_path, {"net": {"student": state, "teacher": state}}))


def test_sizes_of_a_config_are_bounded_before_anything_is_built(model: Any, tmp_path: Path) -> None:
    config = {**MODEL_CFG, "vision_cfg": {**MODEL_CFG["vision_cfg"], "layers": 10**9}}
    path = written(tmp_path, model.state_dict())
    (tmp_path / "mine.json").write_text(json.dumps(config))
    with pytest.raises(BadCheckpoint, match=r"says layers=1000000000: at most 1,000 can be meant"):
        ca.load(path)
    tiny.transformers_model().save_pretrained(tmp_path / "saved")
    saved = tmp_path / "saved" / "config.json"
    saved.write_text(saved.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 999999999'))
    with pytest.raises(BadCheckpoint, match=r"says num_hidden_layers=999999999: at most 1,000"):
        ca.load(tmp_path / "saved")
    with pytest.raises(BadCheckpoint, match=r"is a config, without weights. Type the folder that both are in"):
        ca.load(saved)


def test_a_model_that_cannot_run_itself_is_named(model: Any) -> None:
    mixed, sparse = copy.deepcopy(model), copy.deepcopy(model)
    mixed.visual.transformer.resblocks[0].half()
    with pytest.raises(
        UnsupportedModel,
        match=r"open_clip .* itself fails on a random input of the image tower .* Type: load\(model.float\(\)\)",
    ):
        ca.load(mixed)
    layer = sparse.visual.transformer.resblocks[0].mlp.c_fc
    layer.weight = torch.nn.Parameter(layer.weight.detach().to_sparse())
    with pytest.raises(UnsupportedModel, match=r"c_fc.weight' is a torch.float32, torch.sparse_coo, not plain"):
        ca.load(sparse)
