"""Every way to name a model: specs, saved formats of each library, and what goes wrong with them."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import save_file

import clip_anatomy as ca
from clip_anatomy.loading.open_clip_models import check_activation
from clip_anatomy.loading.parity import relative

MODEL_CFG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "layers": 2, "width": 64, "head_width": 64},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
}


def saved_model(quick_gelu: bool = False) -> Any:
    import open_clip

    return tiny.shake(open_clip.CLIP(**MODEL_CFG, quick_gelu=quick_gelu))


@pytest.fixture(scope="module")
def model() -> Any:
    return saved_model()


def save(state: dict[str, Any], path: Path) -> Path:
    save_file({k: v.contiguous() for k, v in state.items()}, path)
    return path


def same(clip: ca.Clip, model: Any) -> None:
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert relative(clip.encode_image(pixels), model.encode_image(pixels)) <= 1e-5
        from open_clip import tokenize

        texts = ["a photo of a dog", "", "eine Straße bei Nacht 東京", "word " * 10_000]
        assert relative(clip.encode_text(texts), model.encode_text(tokenize(texts))) <= 1e-5


def test_a_folder_that_open_clip_saved(model: Any, tmp_path: Path) -> None:
    save(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    config = {
        "model_cfg": MODEL_CFG,
        "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bilinear"},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    clip = ca.load(tmp_path)
    same(clip, model)
    assert (clip.preprocess.mean, clip.preprocess.interpolation, clip.preprocess.size) == (
        (0.5,) * 3,
        "bilinear",
        (32, 32),
    )


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("nested", [False, True])
def test_a_weights_file_with_its_config_beside_it(model: Any, tmp_path: Path, suffix: str, nested: bool) -> None:
    path = tmp_path / f"mine{suffix}"
    if suffix == ".pt":
        state = model.state_dict()
        torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}} if nested else state, path)
    else:
        save(model.state_dict(), path)
    path.with_suffix(".json").write_text(json.dumps(MODEL_CFG))
    same(ca.load(str(path)), model)


def openai_state(quick: Any) -> dict[str, Any]:
    return {
        **quick.state_dict(),
        "input_resolution": torch.tensor(32),
        "context_length": torch.tensor(77),
        "vocab_size": torch.tensor(49408),
    }


def test_an_openai_state_dict_is_read_off_its_shapes_with_quickgelu(tmp_path: Path) -> None:
    quick = saved_model(quick_gelu=True)
    torch.save(openai_state(quick), tmp_path / "openai.pt")
    clip = ca.load(tmp_path / "openai.pt")
    assert clip.image_tower.activation == "quick_gelu"
    same(clip, quick)


def test_openai_weights_under_a_gelu_config_are_named(tmp_path: Path) -> None:
    torch.save(openai_state(saved_model(quick_gelu=True)), tmp_path / "openai.pt")
    (tmp_path / "openai.json").write_text(json.dumps(MODEL_CFG))
    with pytest.raises(
        ca.errors.BadCheckpoint,
        match=r"trained with QuickGELU, but the config .* uses GELU. Type: .quick_gelu.: true in its config",
    ):
        ca.load(tmp_path / "openai.pt")
    with pytest.raises(ca.errors.BadCheckpoint, match="Type: open_clip:ViT-B-32-quickgelu"):
        ca.load("open_clip:ViT-B-32", weights=tmp_path / "openai.pt")
    with pytest.raises(
        ca.errors.BadCheckpoint,
        match="'openai' were trained with QuickGELU.*Type: open_clip:ViT-B-32-quickgelu/openai$",
    ):
        ca.load("open_clip:ViT-B-32/openai")
    with pytest.raises(
        ca.errors.BadCheckpoint, match="trained with GELU, but .* uses QuickGELU. Type: open_clip:ViT-B-32$"
    ):
        check_activation(False, True, "ViT-B-32-quickgelu", "these weights")


def test_a_named_architecture_with_local_weights(tmp_path: Path) -> None:
    import open_clip

    real = open_clip.CLIP(**open_clip.get_model_config("ViT-B-32")).eval()
    path = save(real.state_dict(), tmp_path / "b32.safetensors")
    clip = ca.load("open_clip:ViT-B-32", weights=path)
    assert clip.name == "open_clip:ViT-B-32"
    pixels = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert relative(clip.encode_image(pixels), real.encode_image(pixels)) <= 1e-5
    with pytest.raises(ca.errors.BadCheckpoint, match=r"conv1\.weight is .*was expected.*belong together"):
        ca.load("open_clip:ViT-B-16", weights=path)


def test_a_folder_that_transformers_saved(tmp_path: Path) -> None:
    model = tiny.transformers_model()
    model.save_pretrained(tmp_path)
    clip = ca.load(tmp_path)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert relative(clip.encode_image(pixels), tiny.features(model.get_image_features(pixel_values=pixels))) <= 1e-5
    assert clip.preprocess.crop == "floor"
    assert ca.load(f"hf:{tmp_path}").digest == clip.digest == ca.load(model).digest
    with pytest.raises(ca.errors.BadText, match=r"without a tokenizer. Type: load\(model, tokenizer=...\)"):
        clip.encode_text(["a dog"])


def test_a_tokenizer_of_ones_own() -> None:
    def tokenizer(texts: list[str]) -> torch.Tensor:
        return torch.tensor([[1, 2 + len(t) % 5, 99] for t in texts])

    clip = ca.load(tiny.open_clip_model(), tokenizer=tokenizer)
    assert clip.encode_text(["a", "bc"]).shape == (2, 12)


def test_a_live_model_is_borrowed_not_copied(model: Any) -> None:
    clip = ca.load(model)
    assert (
        clip.image_tower.blocks[0].up.weight.data_ptr()
        == model.visual.transformer.resblocks[0].mlp.c_fc.weight.data_ptr()
    )
    same(clip, model)
    hf: Any = tiny.transformers_model()
    borrowed = ca.load(hf).image_tower.blocks[1].query.weight
    assert borrowed.data_ptr() == hf.vision_model.encoder.layers[1].self_attn.q_proj.weight.data_ptr()


def test_prompts_are_averaged_as_clips_own_recipe_does(model: Any) -> None:
    from open_clip import tokenize

    clip, templates = ca.load(model), ["a photo of a {}.", "a drawing of a {}.", "{}"]
    with torch.no_grad():
        each = torch.stack([model.encode_text(tokenize([t.format("dog")]), normalize=True)[0] for t in templates]).mean(
            0
        )
    assert relative(clip.encode_text(["dog"], templates=templates)[0], each / each.norm()) <= 1e-5
    with pytest.raises(ca.errors.BadText, match="must hold exactly one {}"):
        clip.encode_text(["dog"], templates=["a photo"])


def test_half_precision_and_devices() -> None:
    model = tiny.open_clip_model()
    assert ca.load(model.to(torch.bfloat16)).image_tower.dtype == torch.bfloat16
    with pytest.raises(ca.errors.BadSpec, match="Type one of: float32"):
        ca.load("demo", dtype="int8")
    with pytest.raises(ca.errors.BadSpec, match="Type one of: auto"):
        ca.load("demo", device="warp")


@pytest.mark.parametrize(
    ("spec", "kind", "says"),
    [
        ("nonsense", "BadSpec", "is not known. Type one of: demo"),
        ("open_clip:ViT-B-23/openai", "BadSpec", "Did you mean ViT-B-32"),
        ("open_clip:ViT-B-32", "BadSpec", "names no weights. Type open_clip:ViT-B-32/TAG"),
        ("open_clip:ViT-B-32/laion", "BadSpec", "has no weights 'laion'"),
        ("no/such/folder", "BadCheckpoint", "there is no file or folder"),
        ("mine.pt", "BadCheckpoint", "there is no file or folder"),
    ],
)
def test_specs_that_are_not_known(spec: str, kind: str, says: str) -> None:
    with pytest.raises(getattr(ca.errors, kind), match=says):
        ca.load(spec)


class Trap:
    ran = False

    def __reduce__(self) -> Any:
        return (setattr, (Trap, "ran", True))


def bad_files(folder: Path, model: Any) -> dict[str, tuple[Path, str]]:
    made: dict[str, tuple[Path, str]] = {}

    def add(name: str, says: str) -> Path:
        made[name] = (folder / name, says)
        return folder / name

    add("empty.pt", "is empty").touch()
    add("text.pt", "not a torch weights file|Python objects").write_text("these are no weights")
    add("text.safetensors", "not a whole safetensors file").write_text("these are no weights")
    pickled = add("pickle.pt", "Python objects|not a torch weights file")
    pickled.write_bytes(pickle.dumps(Trap()))
    torch.save({"weights": Trap()}, add("trap.pt", "Python objects, not only tensors"))
    torch.save([1, 2], add("list.pt", "holds no state dict"))
    torch.save({"a.weight": torch.ones(2)}, add("other.pt", "holds no CLIP weights"))
    whole = save(model.state_dict(), folder / "whole.safetensors").read_bytes()
    add("cut.safetensors", "not a whole safetensors file").write_bytes(whole[: len(whole) // 2])
    torch.save(model.state_dict(), add("unnamed.pt", "no config says which architecture"))
    nan = {k: v.clone() for k, v in model.state_dict().items()}
    nan["visual.proj"][0, 0] = float("nan")
    torch.save(nan, add("nan.pt", "'visual.proj' holds NaN"))
    (folder / "nan.json").write_text(json.dumps(MODEL_CFG))
    torch.jit.script(torch.nn.Linear(2, 2)).save(add("script.pt", "TorchScript archive, which runs code"))
    torch.save(
        {k: v for k, v in model.state_dict().items() if "ln_final" not in k},
        add("short.pt", "ln_final.bias is missing"),
    )
    (folder / "short.json").write_text(json.dumps(MODEL_CFG))
    return made


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_files_that_are_not_these_weights(model: Any, tmp_path: Path) -> None:
    for path, says in bad_files(tmp_path, model).values():
        with pytest.raises(ca.errors.BadCheckpoint, match=says):
            ca.load(path)
    assert not Trap.ran, "a pickle ran code"
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ca.errors.BadCheckpoint, match="holds neither open_clip_config.json nor config.json"):
        ca.load(tmp_path / "nothing")


def test_a_live_model_with_nan_is_named() -> None:
    model: Any = tiny.open_clip_model()
    with torch.no_grad():
        model.ln_final.bias[0] = float("nan")
    with pytest.raises(ca.errors.BadCheckpoint, match="'ln_final.bias' holds NaN"):
        ca.load(model)


@pytest.mark.parametrize(
    ("library", "extra", "spec"),
    [("open_clip", "open-clip", "open_clip:ViT-B-32/openai"), ("transformers", "transformers", "hf:a/b")],
)
def test_a_missing_extra_names_its_install_line(
    monkeypatch: pytest.MonkeyPatch, library: str, extra: str, spec: str
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, library, None)  # what Python itself does for a module that cannot be imported
    with pytest.raises(ca.errors.MissingExtra, match=rf"Type: pip install 'clip-anatomy\[{extra}\]'"):
        ca.load(spec)


@pytest.mark.parametrize(
    ("texts", "says"),
    [("a dog", r"Type: \['a dog'\]"), ([], "no text was given"), (["a", 3], "text 1 is a int")],
)
def test_bad_texts(model: Any, texts: Any, says: str) -> None:
    from clip_anatomy.loading.tokenizer import check_texts

    with pytest.raises(ca.errors.BadText, match=says):
        getattr(check_texts, "__wrapped__", check_texts)(texts)  # without beartype in front, where it stands there
    with pytest.raises(ca.errors.BadText, match="the vocabulary has 49408"):
        ca.load(model, parity=False).encode_text(torch.tensor([[50000]]))
