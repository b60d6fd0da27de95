"""What goes into a model is proven as the model is: pixels and token ids equal the host's, of any length and configuration."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

import clip_anatomy as ca
from clip_anatomy.loading import open_clip_inputs, transformers_preprocess
from clip_anatomy.loading.input_parity import TEXTS, random_picture
from clip_anatomy.loading.parity import relative

pytestmark = pytest.mark.usefixtures("one_thread")

LEVEL = 1 / 255
MODEL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "layers": 1, "width": 32, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def model(**text: Any) -> Any:
    import open_clip

    return tiny.shake(open_clip.CLIP(16, MODEL["vision_cfg"], {**MODEL["text_cfg"], **text}))


@cache
def clip_words() -> Any:
    """CLIP's own tokenizer in transformers' form, from the vocabulary that ships with open_clip."""
    import transformers
    from open_clip.tokenizer import SimpleTokenizer

    own = SimpleTokenizer()
    marks = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    return transformers.CLIPTokenizer(
        vocab={marks.get(word, word): at for word, at in own.encoder.items()},
        merges=[tuple(pair) for pair in sorted(own.bpe_ranks, key=own.bpe_ranks.get)],
    )


# ---- pixels


def processor_saved(folder: Path, together: bool = False, kind: str = "CLIPImageProcessor", **flags: Any) -> Any:
    import transformers

    tiny.transformers_model().save_pretrained(folder)
    processor = getattr(transformers, kind)(**flags)
    if together:
        (folder / "processor_config.json").write_text(json.dumps({"image_processor": processor.to_dict()}))
    else:
        processor.save_pretrained(folder)
    return processor


CROP = {"crop_size": {"height": 32, "width": 32}}
READ: dict[str, dict[str, Any]] = {
    "short side": {"size": {"shortest_edge": 32}, **CROP},
    "sizes as numbers": {"size": 32, "crop_size": 32},
    "short side above the crop": {"size": {"shortest_edge": 40}, **CROP},
    "oblong crop": {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 24}},
    "crop wider than what is left": {"size": {"shortest_edge": 24}, **CROP},
    "squash": {"size": {"height": 32, "width": 32}, "do_center_crop": False, **CROP},
    "bilinear": {"size": {"shortest_edge": 32}, "resample": 2, **CROP},
    "not normalised": {"size": {"shortest_edge": 32}, "do_normalize": False, **CROP},
    "not rescaled": {"size": {"shortest_edge": 32}, "do_rescale": False, "image_mean": [127.5] * 3, "image_std": [60.0] * 3, **CROP},
    "another factor": {"size": {"shortest_edge": 32}, "rescale_factor": 1 / 127.5, **CROP},
    "mean and deviation": {"size": {"shortest_edge": 32}, "image_mean": [0.1, 0.5, 0.9], "image_std": [0.3, 0.4, 0.5], **CROP},
    "of SigLIP": {"kind": "SiglipImageProcessor", "size": {"height": 32, "width": 32}},
    "of ViT": {"kind": "ViTImageProcessor", "size": {"height": 32, "width": 32}},
    "beside the tokenizer": {"together": True, "size": {"shortest_edge": 32}, "image_mean": [0.5] * 3, **CROP},
}  # fmt: skip


@pytest.mark.parametrize("flags", READ.values(), ids=READ)
def test_every_flag_of_a_processor_is_read(flags: dict[str, Any], tmp_path: Path) -> None:
    processor = processor_saved(tmp_path, **flags)
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (90, 141, 3), np.uint8))
    theirs = torch.as_tensor(processor(picture, return_tensors="pt")["pixel_values"][0])
    clip = ca.load(tmp_path)
    assert clip.proof is not None
    assert [(one.claim.split()[0], one.holds) for one in clip.proof.inputs] == [("pixels", True)]
    ours = clip.preprocess(picture)
    assert ours.shape == theirs.shape
    levels = (ours - theirs).abs().amax((1, 2)) * torch.tensor(clip.preprocess.std) / LEVEL
    assert levels.max() < 2.2, "torchvision's filter rounds to the next level or the one after"


REFUSED: dict[str, dict[str, Any]] = {
    "resample": {"size": {"shortest_edge": 32}, "resample": 0, **CROP},
    "do_resize": {"do_resize": False, **CROP},
    "do_center_crop": {"size": {"shortest_edge": 32}, "do_center_crop": False},
    "do_pad": {"size": {"shortest_edge": 32}, "do_pad": True, **CROP},
    "do_color_quantize": {"size": {"shortest_edge": 32}, "do_color_quantize": True, **CROP},
    "crop_size": {"size": {"height": 40, "width": 40}, **CROP},
    "size": {"size": {"longest_edge": 32}, **CROP},
}


@pytest.mark.parametrize("flag", REFUSED)
def test_what_cannot_be_done_is_refused_by_its_flag(flag: str, tmp_path: Path) -> None:
    processor_saved(tmp_path, **REFUSED[flag])
    with pytest.raises(ca.errors.UnsupportedModel, match=rf"has {flag}: .*Type: load\(\.\.\., preprocess=Preprocess\("):
        ca.load(tmp_path)


def test_a_processor_that_transformers_cannot_read_is_named(tmp_path: Path) -> None:
    processor_saved(tmp_path, size={"shortest_edge": 32}, **CROP)
    (tmp_path / "preprocessor_config.json").write_text("[")
    with pytest.raises(ca.errors.BadCheckpoint, match="the image processor of .* cannot be read"):
        ca.load(tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"resize_mode": "squash", "interpolation": "bilinear"},
        {"resize_mode": "longest", "fill_color": 127},
        {"mean": [0.5] * 3, "std": [0.5] * 3, "size": [32, 32]},
    ],
    ids=str,
)
def test_open_clips_pixels_are_equal_to_the_last_bit(config: dict[str, Any], tmp_path: Path) -> None:
    folder_of(tmp_path, preprocess=config)
    proof = ca.load(tmp_path).proof
    assert proof is not None
    assert proof.inputs[0].difference == 0


@pytest.mark.parametrize(
    "wrong", [{"interpolation": "bilinear"}, {"crop": "floor"}, {"resize": "squash"}, {"mean": (0.49, 0.4578275, 0.40821073)}], ids=str
)  # fmt: skip
def test_pixels_that_differ_are_refused(wrong: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ours read wrongly; the random picture has transparency, odd sides, and every frequency."""
    from dataclasses import replace

    from clip_anatomy.loading import open_clip_models

    read = open_clip_inputs.open_clip_preprocess
    monkeypatch.setattr(open_clip_models, "open_clip_preprocess", lambda *given: replace(read(*given), **wrong))
    folder_of(tmp_path)
    with pytest.raises(ca.errors.ParityError, match=r"pixels = open_clip .* does not hold: .* of 255 levels apart"):
        ca.load(tmp_path)
    assert ca.load(tmp_path, parity=False).proof is None


def test_the_random_picture_is_odd_transparent_and_larger() -> None:
    picture = random_picture((32, 24))
    assert picture.mode == "RGBA"
    assert all(side % 2 for side in picture.size)
    assert picture.size == (41, 49)
    assert np.asarray(picture)[..., 3].min() < 128


# ---- token ids


def folder_of(folder: Path, preprocess: dict[str, Any] | None = None, **text: Any) -> Any:
    """Save a model as open_clip does."""
    plain = {key: value for key, value in text.items() if key == "context_length"}
    made = model(**plain)
    config = {**MODEL, "text_cfg": {**MODEL["text_cfg"], **text}}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess or {}}))
    torch.save(made.state_dict(), folder / "open_clip_pytorch_model.bin")
    return made


@pytest.mark.parametrize("text", [{"tokenizer_kwargs": {"clean": "canonicalize"}}, {"context_length": 20}, {}], ids=str)
def test_a_folders_tokenizer_is_open_clips(text: dict[str, Any], tmp_path: Path) -> None:
    import open_clip

    folder_of(tmp_path, **text)
    texts = [*TEXTS, "A dog's photo: BEST, ever!"]
    clip = ca.load(tmp_path)
    assert clip.tokenizer is not None
    assert torch.equal(clip.tokenizer(texts), open_clip.get_tokenizer(f"local-dir:{tmp_path}")(texts))
    assert clip.proof is not None
    assert [(one.claim.split(" =")[0], one.difference) for one in clip.proof.inputs] == [
        ("pixels", 0.0),
        ("token ids", 0.0),
    ]


def test_tokenizer_files_beside_a_model_are_used(tmp_path: Path) -> None:
    made = folder_of(tmp_path, hf_tokenizer_name="somebody/words")
    assert ca.load(tmp_path).tokenizer is None, "nothing is fetched"
    clip_words().save_pretrained(tmp_path)
    clip = ca.load(tmp_path)
    with torch.no_grad():
        theirs = made.encode_text(clip_words()(["a dog"], return_tensors="pt", **PADDED)["input_ids"])
    assert relative(clip.encode_text(["a dog"]), theirs) < 1e-5
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ca.errors.BadCheckpoint, match="tokenizer files in .* cannot be read"):
        ca.load(tmp_path)


def test_unknown_tokenizer_options_are_named(tmp_path: Path) -> None:
    folder_of(tmp_path, tokenizer_kwargs={"colour": "red"})
    with pytest.raises(ca.errors.BadCheckpoint, match="tokenizer_kwargs of the model's config cannot be read.*colour"):
        ca.load(tmp_path)


def test_ids_that_differ_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder_of(tmp_path, tokenizer_kwargs={"clean": "canonicalize"})
    read = open_clip_inputs.default_tokenizer
    monkeypatch.setattr(open_clip_inputs, "default_tokenizer", lambda *given, **_: read(*given))
    with pytest.raises(ca.errors.ParityError, match=r"token ids = open_clip .* does not hold: .* here and .* there"):
        ca.load(tmp_path)


PADDED = {"padding": "max_length", "max_length": 77, "truncation": True}
KINDS: dict[str, Callable[[], Any]] = {
    "a tokenizer of transformers": clip_words,
    "a processor": lambda: __import__("transformers").CLIPProcessor(
        __import__("transformers").CLIPImageProcessor(), clip_words()
    ),
    "lists": lambda: lambda texts: clip_words()(texts, **PADDED)["input_ids"],
    "an array": lambda: lambda texts: np.array(clip_words()(texts, **PADDED)["input_ids"]),
    "an encoding": lambda: lambda texts: clip_words()(texts, return_tensors="pt", **PADDED),
    "one of open_clip": lambda: __import__("open_clip").get_tokenizer("ViT-B-32"),
}


@pytest.mark.parametrize("context", [77, 32, 248])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_any_kind_of_tokenizer_at_any_context(kind: Callable[[], Any], context: int) -> None:
    made = model(context_length=context)
    clip = ca.load(made, tokenizer=kind())
    texts, whole = ["a dog", "a dog beside a house"], {"padding": "max_length", "max_length": context}
    with torch.no_grad():
        theirs = made.encode_text(clip_words()(texts, return_tensors="pt", **whole)["input_ids"])
    assert relative(clip.encode_text(texts), theirs) < 1e-5
    assert clip.tokenizer is not None
    words = ["320", "1929"] if isinstance(kind(), FunctionType) else ["a", "dog"]
    assert clip.tokenizer.pieces("a dog")[1:3] == words


BAD: dict[str, tuple[Callable[[list[str]], Any], str]] = {
    "nothing": (lambda texts: None, "returned a NoneType"),
    "fractions": (lambda texts: torch.ones(len(texts), 3), r"torch.float32 \[1, 3\]"),
    "other rows": (lambda texts: torch.ones(3, 3, dtype=torch.long), "for 1 texts"),
    "ids beyond the vocabulary": (lambda texts: torch.full((len(texts), 3), 50000), "the vocabulary has 49408"),
    "no end": (lambda texts: clip_words()(texts, add_special_tokens=False, padding=True)["input_ids"], "no end-of-text token"),
    "a failure": (lambda texts: texts["input_ids"], "the tokenizer's answer for 'a dog' cannot be read .TypeError"),  # type: ignore[call-overload]
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_tokenizer_that_returns_something_else_is_refused_on_load(bad: tuple[Any, str]) -> None:
    tokenizer, says = bad
    with pytest.raises(ca.errors.BadText, match=says):
        ca.load(model(), tokenizer=tokenizer)


def test_rows_of_several_lengths_are_refused() -> None:
    clip = ca.load(model(), tokenizer=lambda texts: [[*range(len(text)), 49407] for text in texts])
    assert clip.ids(["dog"]).tolist() == [[0, 1, 2, 49407]]
    with pytest.raises(ca.errors.BadText, match=r"rows of \[4, 5\] ids.*Let it pad: tokenizer\(texts, padding="):
        clip.encode_text(["dog", "bird"])


def test_texts_without_the_id_that_is_read_are_refused() -> None:
    """transformers reads at its end-of-text id, and at the start where there is none."""
    clip = ca.load(tiny.transformers_model())
    assert clip.text_tower.eos == 99
    assert clip.encode_text(torch.tensor([[98, 5, 99]])).shape == (1, 12)
    with pytest.raises(ca.errors.BadText, match=r"text 1 has no end-of-text token \(id 99\)"):
        clip.encode_text(torch.tensor([[98, 5, 99], [98, 5, 6]]))


def test_ids_longer_than_the_context() -> None:
    """What stands behind the end is not read; what stands before it must fit."""
    made = model(context_length=8)
    clip = ca.load(made)
    ids = torch.zeros(1, 77, dtype=torch.long)
    ids[0, :4] = torch.tensor([49406, 320, 1929, 49407])
    with torch.no_grad():
        assert relative(clip.encode_text(ids), made.encode_text(ids[:, :8])) < 1e-5
    ids[0, 3:40], ids[0, 40] = 320, 49407
    with pytest.raises(ca.errors.BadText, match="a text has 41 tokens, the model's context at most 8 tokens"):
        clip.encode_text(ids)


@pytest.mark.parametrize("context", [16, 77, 248])
def test_transformers_with_any_context(context: int, tmp_path: Path) -> None:
    from transformers import CLIPConfig, CLIPModel

    side = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**side, "max_position_embeddings": context, "eos_token_id": 49407},
        vision_config={**side, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    made: Any = tiny.shake(CLIPModel(config))
    made.save_pretrained(tmp_path)
    clip_words().save_pretrained(tmp_path)
    ids = clip_words()(list(TEXTS), padding=True, truncation=True, max_length=context, return_tensors="pt")
    with torch.no_grad():
        theirs = tiny.features(made.get_text_features(**ids))
    for clip in (ca.load(tmp_path), ca.load(made, tokenizer=clip_words())):
        assert relative(clip.encode_text(list(TEXTS)), theirs) < 1e-5


# ---- weights in a file of their own


@pytest.fixture
def small_names(tmp_path: Path) -> Path:
    """open_clip's own names with a tiny architecture behind them; its configurations are put back."""
    import open_clip

    names = ("ViT-L-14", "ViT-B-16")
    known = {name: open_clip.get_model_config(name) for name in names}
    for name in names:
        (tmp_path / f"{name}.json").write_text(json.dumps(MODEL))
    open_clip.add_model_config(tmp_path)
    yield tmp_path
    for name in names:
        (tmp_path / f"{name}.json").write_text(json.dumps(known[name]))
    open_clip.add_model_config(tmp_path)


def test_a_file_of_weights_keeps_the_preprocessing_published_with_them(small_names: Path) -> None:
    path = small_names / "weights.pt"
    torch.save(model().state_dict(), path)
    half = (0.5, 0.5, 0.5)
    assert ca.load("open_clip:ViT-L-14/laion2b_s32b_b82k", weights=path).preprocess.mean == half
    assert ca.load("open_clip:ViT-L-14/laion400m_e32", weights=path).preprocess.mean[0] == 0.48145466
    with pytest.raises(ca.errors.BadSpec, match=r"want different preprocessing .* Type the tag .*open_clip:ViT-L-14/"):
        ca.load("open_clip:ViT-L-14", weights=path)
    assert ca.load("open_clip:ViT-B-16", weights=path).preprocess.mean[0] == 0.48145466, "all its tags agree"
    called = path.rename(small_names / "laion2b_s32b_b82k.pt")
    assert ca.load("open_clip:ViT-L-14", weights=called).preprocess.mean == half
    with pytest.raises(ca.errors.BadSpec, match="has no weights 'laion'"):
        ca.load("open_clip:ViT-L-14/laion", weights=called)
    with pytest.raises(ca.errors.BadCheckpoint, match="'openai' were trained with QuickGELU"):
        ca.load("open_clip:ViT-L-14/openai", weights=called)


def test_a_longer_table_of_positions_keeps_its_length(small_names: Path) -> None:
    long = model(context_length=248)
    torch.save(long.state_dict(), small_names / "long.pt")
    clip = ca.load("open_clip:ViT-B-16", weights=small_names / "long.pt")
    assert clip.text_tower.grid == (1, 248)
    ids = clip_words()([TEXTS[1]], truncation=True, max_length=248, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert relative(clip.encode_text([TEXTS[1]]), long.encode_text(ids)) < 1e-5
    assert clip.proof is not None
    assert clip.proof.inputs[1].difference == 0


def test_long_clips_two_tables_are_one(small_names: Path) -> None:
    """Its forward adds 20 rows of the first to the others of the second."""
    long = model(context_length=248)
    state = dict(long.state_dict())
    whole = state["positional_embedding"]
    state["positional_embedding"] = torch.cat([whole[:20], torch.randn(228, 32)])
    state["positional_embedding_res"] = torch.cat([torch.randn(20, 32), whole[20:]])
    torch.save(state, small_names / "longclip.pt")
    clip = ca.load("open_clip:ViT-B-16", weights=small_names / "longclip.pt")
    assert torch.equal(clip.text_tower.embedding.position, whole)


def test_a_refusal_names_the_flag_that_stands_first() -> None:
    with pytest.raises(ca.errors.UnsupportedModel, match="has do_resize: False"):
        transformers_preprocess.read_processor(
            __import__("transformers").CLIPImageProcessor(do_resize=False, resample=0)
        )


def test_a_text_tower_of_the_hub_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import save_file

    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    save_file({"visual.conv1.weight": torch.zeros(1)}, tmp_path / "weights.safetensors")
    says = r"the text tower of roberta-ViT-B-32 is 'roberta-base' of the Hugging Face hub.*allow_network"
    with pytest.raises(ca.errors.BadCheckpoint, match=says):
        ca.load("open_clip:roberta-ViT-B-32", weights=tmp_path / "weights.safetensors")
