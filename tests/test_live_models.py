"""Live models in the states that training programs leave them in: opened, or one sentence says what to pass."""

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from tiny_families import TEXT, family, randomized
from torch import nn

import clip_anatomy as ca
from clip_anatomy.loading.live_models import ALTERED, read_host
from clip_anatomy.loading.open_clip_models import open_clip_model
from clip_anatomy.loading.parity import relative

PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))


class Trained(nn.Module):
    """A task's module that holds a CLIP under a name of its own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict({"clip": model})


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel, lambda m: nn.DataParallel(torch.compile(m))])
def test_wrappers_of_torch_are_opened(wrap: Callable[[Any], Any]) -> None:
    model: Any = tiny.open_clip_model()
    clip = ca.load(wrap(model))
    assert clip.host is model
    with torch.no_grad():
        assert relative(clip.encode_image(PIXELS), model.encode_image(PIXELS)) <= 1e-5


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel, lambda m: nn.DataParallel(torch.compile(m))])
@pytest.mark.parametrize("name", ["siglip", "eva02"])
def test_wrapped_models_of_other_families_are_opened(name: str, wrap: Callable[[Any], Any]) -> None:
    model: Any = family(name)
    clip = ca.load(wrap(model))
    assert clip.host is model
    with torch.no_grad():
        assert relative(ca.decompose(clip, PIXELS).total(), model.encode_image(PIXELS)) <= 1e-5


def test_a_checkpoint_of_a_training_run_opens_in_other_families(tmp_path: Path) -> None:
    vision = {"timm_model_name": "eva02_tiny_patch14_224", "timm_pool": "avg", "timm_proj": "linear", "image_size": 224}
    config = {"embed_dim": 40, "vision_cfg": vision, "text_cfg": TEXT, "custom_text": True}
    model = randomized(open_clip_model(config))
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state, "optimizer": {"state": {}}}, tmp_path / "open_clip_pytorch_model.bin")
    clip = ca.load(tmp_path)
    assert clip.proof is not None
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert relative(ca.decompose(clip, pixels).total(), model.encode_image(pixels)) <= 1e-5


def test_a_subclass_is_read_as_its_base_and_proved() -> None:
    import transformers

    class Mine(transformers.CLIPModel):
        pass

    class Other(transformers.CLIPModel):
        def get_image_features(self, *args: Any, **kwargs: Any) -> Any:
            return -tiny.features(super().get_image_features(*args, **kwargs))

    model: Any = tiny.transformers_model()
    for kind in (Mine, Other):
        model.__class__ = kind
        if kind is Other:
            with pytest.raises(ca.errors.ParityError):
                ca.load(model)
        else:
            assert ca.load(model).proof.holds


def test_a_clip_inside_another_module_is_named_by_its_attribute() -> None:
    task = Trained(tiny.open_clip_model())
    with pytest.raises(ca.errors.UnsupportedModel, match=r"holds a CLIP .*Type: load\(model\.backbone\.clip\)"):
        ca.load(task)
    assert ca.load(task.get_submodule("backbone.clip")).proof.holds, "what the message says to type works"
    task.averaged = copy.deepcopy(task.backbone["clip"])
    with pytest.raises(
        ca.errors.UnsupportedModel, match=r"Type: load\(model\.backbone\.clip\) or load\(model\.averaged\)$"
    ):
        ca.load(task)


def lora(model: Any) -> None:
    layer = model.vision_model.encoder.layers[0].self_attn

    class Adapter(nn.Module):
        def __init__(self, base: nn.Linear) -> None:
            super().__init__()
            self.base_layer, self.lora_A = base, nn.Linear(base.in_features, 2)

    layer.q_proj = Adapter(layer.q_proj)


def weight_norm(model: Any) -> None:
    nn.utils.parametrizations.weight_norm(model.vision_model.encoder.layers[0].mlp.fc1)


def pruned(model: Any) -> None:
    from torch.nn.utils import prune

    prune.l1_unstructured(model.vision_model.encoder.layers[0].mlp.fc1, "weight", amount=0.5)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lora, r"adapters \(LoRA\)|adapters .*merge_and_unload"),
        (weight_norm, "remove_parametrizations"),
        (pruned, "prune.remove"),
    ],
)
def test_layers_that_compute_something_else_than_their_weights_are_refused(
    change: Callable[[Any], None], says: str
) -> None:
    model = tiny.transformers_model()
    change(model)
    with pytest.raises(ca.errors.UnsupportedModel, match=says):
        read_host(model)
    assert all(way for _, way in ALTERED.values())


def test_dropout_in_training_mode_is_named_and_eval_mends_it() -> None:
    model: Any = tiny.transformers_model()
    ca.load(model.train())  # without any dropout both modes are one
    for layer in model.vision_model.encoder.layers:
        layer.self_attn.dropout = 0.25
    before = torch.random.get_rng_state()
    with pytest.raises(ca.errors.UnsupportedModel, match=r"drops 25% at random.* Type: model\.eval\(\)"):
        ca.load(model)
    assert torch.equal(before, torch.random.get_rng_state())
    assert model.training
    assert ca.load(model.eval()).proof.holds


def test_a_model_without_numbers_and_one_of_integers_are_named() -> None:
    with pytest.raises(ca.errors.UnsupportedModel, match="meta device.* Type: model.to_empty"):
        ca.load(tiny.open_clip_model().to("meta"))
    quantised: Any = tiny.open_clip_model()
    block = quantised.visual.transformer.resblocks[0].mlp.c_fc
    block.weight = nn.Parameter(block.weight.detach().to(torch.int8), requires_grad=False)
    with pytest.raises(ca.errors.UnsupportedModel, match=r"c_fc\.weight' is a torch\.int8"):
        ca.load(quantised)


def test_a_model_built_in_inference_mode_opens_borrowed_and_has_gradient_maps() -> None:
    with torch.inference_mode():
        model: Any = tiny.open_clip_model()
    assert model.visual.proj.is_inference()
    clip = ca.load(model, tokenizer=lambda texts: torch.tensor([[1, 2 + len(t) % 5, 99] for t in texts]))
    assert clip.image_tower.projection.data_ptr() == model.visual.proj.data_ptr()
    plain = ca.load(tiny.open_clip_model(), tokenizer=clip.tokenizer)
    for method in ("gradcam", "chefer", "decomposition"):
        maps = [ca.heatmap(one, PIXELS, ["a", "bc"], method=method).values for one in (clip, plain)]
        assert torch.equal(*maps)


def test_an_opened_model_goes_through_pickle_with_its_weights_once() -> None:
    model: Any = tiny.open_clip_model(text={"vocab_size": 49408, "context_length": 77})
    clip = ca.load(model)
    sent = pickle.dumps(clip)
    back = pickle.loads(sent)
    assert torch.equal(back.encode_text(["a dog", "two"]), clip.encode_text(["a dog", "two"]))
    assert torch.equal(back.encode_image(PIXELS), clip.encode_image(PIXELS))
    assert (back.digest, back.proof, back.tokenizer.pieces("a dog")) == (
        clip.digest,
        clip.proof,
        clip.tokenizer.pieces("a dog"),
    )
    assert len(sent) < 1.1 * sum(t.numel() * t.element_size() for t in model.state_dict().values()) + 3e6


def test_scale_and_bias_follow_a_model_that_is_trained_on() -> None:
    model = tiny.open_clip_model()
    model.logit_bias = nn.Parameter(torch.tensor(-10.0))
    clip, cosine = ca.load(model), torch.tensor([[0.1, 0.3]])
    before = clip.probabilities(cosine)
    with torch.no_grad():
        model.logit_scale += 0.5
        model.logit_bias += 2
    assert clip.logit_scale == pytest.approx(float(model.logit_scale.detach().exp()))
    assert clip.logit_bias == -8
    assert torch.equal(clip.probabilities(cosine), ca.load(model).probabilities(cosine))
    assert not torch.equal(clip.probabilities(cosine), before)
    again = pickle.loads(pickle.dumps(clip))
    assert (again.logit_scale, again.logit_bias) == (clip.logit_scale, -8)
    with torch.no_grad():
        again.host.logit_bias += 1
    assert (again.logit_bias, clip.logit_bias) == (-7, -8)
