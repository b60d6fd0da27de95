"""Ablation is what it says: brute force over tokens and heads, the official code's accuracies, and clear refusals."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

import clip_anatomy as ca
from clip_anatomy.edits.measured_replacements import replacements_of
from clip_anatomy.edits.replace_parts import replace_parts
from clip_anatomy.edits.selection import Selection
from clip_anatomy.edits.split_contributions import change_of_parts
from clip_anatomy.errors import BadInput, BadSpec, UnsupportedModel
from clip_anatomy.naming.textspan import textspan
from clip_anatomy.split.basis import basis_of
from clip_anatomy.split.means import Means
from clip_anatomy.split.moments import Moments
from clip_anatomy.split.source_tokens import token_parts

LAYERS, HEADS, TOKENS = 2, 2, 17
places = st.tuples(
    st.sets(st.tuples(st.integers(0, LAYERS - 1), st.integers(0, HEADS - 1))).map(tuple),
    st.sets(st.integers(0, LAYERS - 1)).map(tuple),
    st.sets(st.integers(0, LAYERS - 1)).map(tuple),
    st.booleans(),
    st.sets(st.integers(0, TOKENS - 1), max_size=4).map(tuple),
)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def clip() -> Any:
    return ca.load(tiny.open_clip_model(layers=LAYERS, heads=HEADS, d=8))


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def cells(clip: Any, pixels: Tensor, convention: str) -> dict[tuple[Any, ...], Tensor]:
    """Every part of every image by itself, [image, embed], heads by token: the slow and simple way."""
    parts = ca.decompose(clip, pixels, convention)
    length = parts.embedding.norm(dim=-1)[:, None]
    tokens = parts.tokens(torch.eye(12)) * length[:, :, None, None, None]
    found = {("mlp", layer): parts.mlps[:, layer] for layer in range(LAYERS)} | {
        ("input-embedding",): parts.input_embedding
    }
    for layer in range(LAYERS):
        for head in range(HEADS):
            for token in range(TOKENS):
                found["head", layer, head, token] = tokens[:, layer, head, token]
    return {name: x.double() / length for name, x in found.items()}


def wanted(selection: Selection) -> list[tuple[Any, ...]]:
    found: set[tuple[Any, ...]] = {("mlp", layer) for layer in selection.mlps}
    found |= {("input-embedding",)} if selection.input_embedding else set()
    found |= {("head", *pair, token) for pair in selection.heads for token in range(TOKENS)}
    for layer in range(LAYERS):
        for head in range(HEADS):
            found |= {("head", layer, head, token) for token in selection.tokens}
            found |= {("head", layer, head, 0)} if layer in selection.class_to_class else set()
    return sorted(found, key=str)


@settings(max_examples=25, deadline=None)
@given(
    place=places,
    by=st.sampled_from(["mean", "zero", "swap", "over"]),
    convention=st.sampled_from(["centered", "official"]),
)
def test_it_is_the_sum_of_the_parts_with_some_replaced(
    clip: Any, pixels: Tensor, place: Any, by: str, convention: Any
) -> None:
    selection = Selection(*place)
    few, others = pixels[:4], pixels[3:]
    mine, theirs = cells(clip, few, convention), cells(clip, others, convention)
    whole = clip.encode_image(few).double()
    expected = whole / whole.norm(dim=-1, keepdim=True)
    for name in wanted(selection):
        put = {"mean": mine[name].mean(0), "zero": 0, "swap": theirs[name][:1], "over": theirs[name].mean(0)}[by]
        expected = expected + put - mine[name]
    more = {"swap": {"other": others[:1]}, "over": {"over": others}}.get(by, {})
    found = replace_parts(clip, few, selection, "mean" if by == "over" else by, convention=convention, **more)
    torch.testing.assert_close(found.double(), expected * whole.norm(dim=-1, keepdim=True), atol=2e-4, rtol=2e-4)
    if not selection:
        assert torch.equal(found, clip.encode_image(few))


def test_means_that_were_taken_before_are_the_same_means(clip: Any, pixels: Tensor) -> None:
    selection = Selection(((0, 1), (1, 0)), mlps=(0,), class_to_class=(0, 1), input_embedding=True)
    means = Means.of(clip, pixels, class_to_class=True)
    torch.testing.assert_close(
        replace_parts(clip, pixels, selection, over=means), replace_parts(clip, pixels, selection), atol=1e-4, rtol=1e-4
    )
    heads = Selection(selection.heads)
    parts = ca.decompose(clip, pixels)
    for moments in (Moments.of(parts), Moments.of(parts, basis=basis_of(clip.image_tower))):
        torch.testing.assert_close(
            replace_parts(clip, pixels, heads, over=moments), replace_parts(clip, pixels, heads), atol=1e-4, rtol=1e-4
        )


def test_texts_stand_in_for_heads(clip: Any, pixels: Tensor) -> None:
    parts = ca.decompose(clip, pixels)
    pool = torch.nn.functional.normalize(torch.randn(30, 12, generator=torch.Generator().manual_seed(2)), dim=-1)
    x = (parts.heads / parts.embedding.norm(dim=-1)[:, None, None, None]).double()
    for moments in (Moments.of(parts), Moments.of(parts, basis=basis_of(clip.image_tower))):
        span = textspan(moments, pool, texts_per_head=2)
        directions = span.directions[1, 0]
        if span.basis is not None:
            directions = directions @ span.basis.rows[1, 0]
        mean = x[:, 1, 0].mean(0)
        again = mean + (x[:, 1, 0] - mean) @ directions.T @ directions
        length = parts.embedding.norm(dim=-1, keepdim=True).double()
        expected = parts.embedding.double() + length * (again - x[:, 1, 0])
        found = replace_parts(clip, pixels, "1.0", "texts", span=span)
        torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("convention", ["centered", "official"])
def test_all_tokens_together_are_the_head(clip: Any, pixels: Tensor, convention: Any) -> None:
    parts = ca.decompose(clip, pixels, convention)
    every = token_parts(parts, {layer: range(TOKENS) for layer in range(LAYERS)})
    torch.testing.assert_close(every, parts.heads, atol=1e-4, rtol=1e-4)
    own = token_parts(parts, {layer: [0] for layer in range(LAYERS)}).sum(2)
    torch.testing.assert_close(own, parts.class_to_class(), atol=1e-4, rtol=1e-4)


def test_everything_at_its_mean_leaves_one_embedding(clip: Any, pixels: Tensor) -> None:
    parts = ca.decompose(clip, pixels, "official")  # whose parts hold the biases too
    everything = Selection.parse("all+mlp=all+input-embedding", LAYERS, HEADS)
    unit = torch.nn.functional.normalize(parts.embedding, dim=-1)
    every = replacements_of(everything, by="zero", embed=12)
    torch.testing.assert_close(-change_of_parts(every, parts), unit, atol=1e-5, rtol=1e-5)
    found = torch.nn.functional.normalize(replace_parts(clip, pixels, everything, convention="official"), dim=-1)
    torch.testing.assert_close(found, found[:1].expand_as(found), atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def oracle(shared: Path) -> Any:
    import open_clip

    folder = shared / "oracles" / "vit-a"
    config = json.loads((folder / "oracle-vit.json").read_text())
    model = open_clip.CLIP(
        **{k: v for k, v in config.items() if k in ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu")}
    )
    model.load_state_dict({k: v.float() for k, v in load_file(folder / "weights.safetensors").items()})
    inputs = np.load(folder / "inputs.npz")
    expected = json.loads((folder / "results.json").read_text())["ablation_accuracy_percent"]
    return ca.load(model.eval(), parity=False), inputs, expected


def test_accuracies_are_those_of_the_official_code(oracle: Any) -> None:
    clip, inputs, expected = oracle
    images, classes, labels = (torch.from_numpy(inputs[name]) for name in ("images", "classifier", "labels"))

    def accuracy(spec: str) -> float:
        found = replace_parts(clip, images.float(), spec, convention="official")  # the convention of the official code
        return 100 * float(((found @ classes.float().T).argmax(1) == labels).double().mean())

    assert accuracy("none") == pytest.approx(expected["base"])
    assert accuracy("mlp=all+input-embedding") == pytest.approx(
        expected["mlps"]
    )  # its first "MLP" is the start of the stream
    assert accuracy("class-to-class=all") == pytest.approx(expected["cls_to_cls"])
    assert accuracy("layer=0-3") == pytest.approx(expected["attention_layers_cumulative"][3])  # all: test_studies.py


@pytest.mark.parametrize(
    ("more", "error", "says"),
    [
        (
            {"selection": "7.0"},
            BadSpec,
            "heads that do not exist: 7.0. Type LAYER.HEAD with a layer of 0-1 and a head of 0-1",
        ),
        ({"selection": "token=17"}, BadSpec, r"Type token=0-16"),
        ({"selection": "role=colour"}, BadSpec, "atlas"),
        ({"by": "median"}, BadSpec, "Type one of: mean, zero, texts, swap"),
        ({"by": "texts"}, BadSpec, "span=textspan"),
        ({"by": "swap"}, BadSpec, "other=IMAGE"),
        ({"by": "zero", "over": torch.zeros(1, 3, 32, 32)}, BadSpec, "type by='mean'"),
        ({"by": "swap", "other": torch.zeros(3, 3, 32, 32)}, BadInput, "give one, or one for each"),
        ({"images": 1}, BadInput, "Type over=IMAGES, or by='zero'"),
        ({"over": "moments", "selection": "mlp=1"}, BadInput, "moments hold heads only, not MLP 1. Type Means.of"),
        ({"over": "moments", "convention": "official"}, BadInput, "type convention='centered'"),
        ({"over": "means", "selection": "token=1"}, BadInput, "Type over=images"),
        ({"over": "means", "selection": "class-to-class=0"}, BadInput, "class_to_class=True"),
        ({"over": "others"}, BadInput, "of another model"),
        ({"images": "nan"}, BadInput, "image 1: .* NaN or infinite"),
    ],
)
def test_what_cannot_be_is_named(
    clip: Any, pixels: Tensor, more: dict[str, Any], error: type[Exception], says: str
) -> None:
    call = {"selection": "1.0", **more}
    kinds = {
        "moments": lambda: Moments.of(ca.decompose(clip, pixels)),
        "means": lambda: Means.of(clip, pixels),
        "others": lambda: Moments.of(ca.decompose(clip, pixels), model="another"),
    }
    if isinstance(call.get("over"), str):
        call["over"] = kinds[call["over"]]()
    images = call.pop("images", 6)
    given = pixels[:1] if images == 1 else pixels
    if images == "nan":
        given = pixels.clone()
        given[1] = torch.nan
    with pytest.raises(error, match=says):
        replace_parts(clip, given, call.pop("selection"), call.pop("by", "mean"), **call)


def test_a_model_that_averages_its_patches(pixels: Tensor) -> None:
    clip = ca.load(tiny.open_clip_model(vision={"pool_type": "avg"}), parity=False)
    parts = ca.decompose(clip, pixels)
    every = token_parts(parts, {layer: range(TOKENS) for layer in range(LAYERS)})
    torch.testing.assert_close(every, parts.heads, atol=1e-4, rtol=1e-4)
    with pytest.raises(BadSpec, match="no class token reads from itself. Type heads, MLPs or tokens instead"):
        replace_parts(clip, pixels, "class-to-class=all")


def test_a_resnet_has_heads_but_no_mlps() -> None:
    import open_clip

    vision = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
    model = open_clip.CLIP(
        embed_dim=12,
        vision_cfg=vision,
        text_cfg={"context_length": 12, "vocab_size": 100, "width": 16, "heads": 2, "layers": 1},
    )
    clip, images = ca.load(tiny.shake(model), parity=False), torch.randn(3, 3, 64, 64)
    parts = ca.decompose(clip, images)
    length = parts.embedding.norm(dim=-1, keepdim=True)
    x = parts.heads[:, 0, 1] / length
    torch.testing.assert_close(
        replace_parts(clip, images, "0.1"), parts.embedding + length * (x.mean(0) - x), atol=1e-4, rtol=1e-4
    )
    with pytest.raises(BadSpec, match="no MLPs"):
        replace_parts(clip, images, "mlp=all")
    with pytest.raises(UnsupportedModel, match="Type heads, for example 0.0"):
        replace_parts(clip, images, "token=1")
