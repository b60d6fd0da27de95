"""An edit replaces exactly the direct effects it names, in whatever form the parts are there."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import tiny
import tiny_resnet
import torch
from edits import SPEC, clip, close, means, model, pixels
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import clip_anatomy as ca
from clip_anatomy.data.open_dataset import open_dataset
from clip_anatomy.edits.edit import Edit
from clip_anatomy.edits.edited_clip import EditedClip
from clip_anatomy.edits.replacement import Replacement
from clip_anatomy.edits.selection import Selection
from clip_anatomy.errors import BadInput, BadSpec, ClipAnatomyError, UnsupportedModel
from clip_anatomy.split.basis import basis_of
from clip_anatomy.split.means import Means

__all__ = ["clip", "means", "model"]  # fixtures


def longhand(model: Any, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Embedding, heads by source token, MLPs and start in the joint space, from the host's own modules in float64."""
    visual = model.visual.double()
    x = visual._embeds(images.double())
    attention = visual.transformer.resblocks[0].attn
    heads, d = attention.num_heads, x.shape[-1] // attention.num_heads
    start, written, mlps = x[:, 0], [], []
    for block in visual.transformer.resblocks:
        q, k, v = (block.ln_1(x) @ block.attn.in_proj_weight.T + block.attn.in_proj_bias).chunk(3, -1)
        rows = []
        for h in range(heads):
            s = slice(h * d, (h + 1) * d)
            a = torch.softmax((q[:, 0, None, s] * k[..., s]).sum(-1) / d**0.5, -1)
            rows.append((a[..., None] * v[..., s]) @ block.attn.out_proj.weight[:, s].T)
        written.append(torch.stack(rows, 1))
        y = x + block.attn(*[block.ln_1(x)] * 3, need_weights=False)[0]
        mlps.append(block.mlp(block.ln_2(y))[:, 0])
        x = block(x)
    stream = x[:, 0]
    sigma = (stream.var(-1, unbiased=False) + visual.ln_post.eps).sqrt()

    def joint(part: Tensor) -> Tensor:
        scaled = (part - part.mean(-1, keepdim=True)) / sigma.view(-1, *[1] * (part.dim() - 1))
        return (scaled * visual.ln_post.weight) @ visual.proj

    return (
        visual.ln_post(stream) @ visual.proj,
        joint(torch.stack(written, 1)),
        joint(torch.stack(mlps, 1)),
        joint(start),
    )


def test_it_equals_a_longhand_replacement_from_the_hosts_modules(model: nn.Module, clip: Any, means: Means) -> None:
    twin = copy.deepcopy(model)
    with torch.no_grad():
        e, heads, mlps, start = longhand(twin, pixels(4))
        e0, heads0, mlps0, start0 = longhand(twin, pixels(7, 9))
    length, length0 = e.norm(dim=-1, keepdim=True), e0.norm(dim=-1, keepdim=True)
    new = e.clone()

    def swap(x: Tensor, y: Tensor) -> None:
        nonlocal new
        new = new - x + length * (y / length0).mean(0)

    for layer, head in ((0, 1), (1, 0), (2, 2)):
        swap(heads[:, layer, head].sum(1), heads0[:, layer, head].sum(1))
    for layer in (0, 2):
        swap(mlps[:, layer], mlps0[:, layer])
    for layer, head in ((1, 1), (1, 2), (2, 0), (2, 1)):  # heads of layers 1 and 2 that are not replaced as a whole
        swap(heads[:, layer, head, 0], heads0[:, layer, head, 0])
    swap(start, start0)
    edit = Edit.of(clip, SPEC, means)
    close(edit.apply(ca.decompose(clip, pixels(4))), new)
    close(EditedClip(clip, edit).encode_image(pixels(4)), new)


def test_in_double_precision_it_equals_the_longhand_to_twelve_digits() -> None:
    host = tiny.open_clip_model(layers=3, heads=3).double()
    clip = ca.load(host)
    with torch.no_grad():
        e, heads, mlps, start = longhand(host, pixels(4))
    new = e - start - mlps[:, [0, 2]].sum(1) - heads[:, 2, :, 0].sum(1)  # in the last block, of the class token alone
    for layer, head in ((0, 1), (1, 0)):
        new = new - heads[:, layer, head].sum(1)
    new = new - heads[:, 1, 1:, 0].sum(1)
    edit = Edit.of(clip, "0.1,1.0+mlp=0,2+class-to-class=1,2+input-embedding", by="zero")
    close(EditedClip(clip, edit).encode_image(pixels(4)), new, 1e-12)


kinds = st.sampled_from(
    [
        {},
        {"no_ln_pre": True},
        {"ls_init_value": 0.5},
        {"mlp_ratio": 2.0},
        {"pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True},
        {"pool_type": "avg"},
        {"library": "transformers"},  # query, key and value apart
    ]
)


@given(
    vision=kinds,
    shape=st.fixed_dictionaries(
        {
            "layers": st.integers(1, 3),
            "heads": st.integers(1, 3),
            "d": st.sampled_from([4, 8]),
            "quick_gelu": st.booleans(),
        }
    ),
    by=st.sampled_from(["mean", "zero"]),
    data=st.data(),
)
@settings(max_examples=25, deadline=None)
def test_the_encoder_equals_the_sum_over_parts(
    vision: dict[str, Any], shape: dict[str, Any], by: Any, data: Any
) -> None:
    layers, heads = shape["layers"], shape["heads"]
    if vision.get("library") == "transformers":
        clip = ca.load(tiny.transformers_model(layers=layers, heads=heads, d=shape["d"]))
    else:
        clip = ca.load(tiny.open_clip_model(**shape, vision=vision, seed=data.draw(st.integers(0, 9))))
    averaged = vision.get("pool_type") == "avg"
    some = st.lists(st.integers(0, layers - 1), max_size=layers).map(tuple)
    pairs = st.lists(st.tuples(st.integers(0, layers - 1), st.integers(0, heads - 1)), max_size=4).map(tuple)
    chosen = Selection(data.draw(pairs), data.draw(some), () if averaged else data.draw(some), data.draw(st.booleans()))
    lines = {pair: torch.randn(2, 12, generator=torch.Generator().manual_seed(3)) for pair in chosen.heads[:1]}
    measured = Means.of(clip, pixels(5, 1), class_to_class=not averaged)
    edit = Edit.of(
        clip, chosen, None if by == "zero" else measured, by, directions=data.draw(st.sampled_from([lines, {}]))
    )
    assert edit.parts == chosen
    size = data.draw(st.sampled_from([(32, 32), (16, 40), (64, 16), (8, 8)]))
    images = pixels(3, 2, size)
    close(EditedClip(clip, edit).encode_image(images), edit.apply(ca.decompose(clip, images)), 5e-5)


def test_only_the_subspace_is_replaced_or_only_it_is_kept(clip: Any, means: Means) -> None:
    images = pixels(4)
    parts = ca.decompose(clip, images)
    length = parts.embedding.norm(dim=-1, keepdim=True)
    rows = torch.randn(2, 12, generator=torch.Generator().manual_seed(5))
    edit = Edit.of(clip, "2.1", means, directions={(2, 1): rows})
    moved = (edit.apply(parts) - parts.embedding) / length
    plain = (Edit.of(clip, "2.1", means).apply(parts) - parts.embedding) / length
    onto = torch.linalg.pinv(rows) @ rows  # the projector of any spanning set
    close(moved, plain @ onto, 1e-5)
    close(moved + (plain - moved), plain, 1e-5)
    # Replaced twice is replaced once: what is left no longer varies in the subspace.
    left = parts.heads[:, 2, 1] / length + moved
    assert float((left @ rows.T).var(0).max()) < 1e-10


def test_by_texts_is_the_reconstruction_of_textspan(clip: Any) -> None:
    images = pixels(40, 4)
    basis = basis_of(clip.image_tower)
    parts = ca.decompose(clip, images)
    moments = ca.Moments.of(parts, basis=basis, model=clip.digest)
    texts = torch.randn(30, 12, generator=torch.Generator().manual_seed(6))
    span = ca.textspan(moments, texts, texts_per_head=3)
    edit = Edit.of(clip, "0.0,2.1", moments, "texts", span=span)
    length = parts.embedding.norm(dim=-1)[:, None, None, None]
    rebuilt = basis.restore(span.reconstruct(basis.coordinates(parts.heads / length))) * length
    new = parts.embedding.double()
    for layer, head in ((0, 0), (2, 1)):
        new = new - parts.heads[:, layer, head].double() + rebuilt[:, layer, head]
    close(edit.apply(parts), new)
    close(EditedClip(clip, edit).encode_image(images), new)
    assert edit.descriptions[0] == "head 0.0 by its texts (3 directions kept)"


def test_from_head_coordinates_alone(clip: Any, means: Means) -> None:
    basis, parts = basis_of(clip.image_tower), ca.decompose(clip, pixels(4))
    edit = Edit.of(clip, "0.1,2.1", means, directions={(2, 1): torch.eye(12)[:2]}) + Edit.of(clip, "1.2", by="zero")
    length = parts.embedding.norm(dim=-1, keepdim=True)
    u = basis.coordinates(parts.heads / length[..., None, None])
    shift = edit.shift({pair: u[:, pair[0], pair[1]] for pair in edit.parts.heads}, basis)
    close((parts.embedding / length + shift) * length, edit.apply(parts))
    with pytest.raises(BadInput, match=r"heads 2\.1 are replaced but.* Type \{pair: store\.heads"):
        edit.shift({(0, 1): u[:, 0, 1], (1, 2): u[:, 1, 2]}, basis)
    with pytest.raises(BadInput, match=r"only heads can be replaced.*Type EditedClip"):
        Edit.of(clip, "mlp=0", by="zero").shift({}, basis)
    some = {pair: u[:, pair[0], pair[1]] for pair in edit.parts.heads}
    with pytest.raises(BadInput, match=r"layers 0 are edited, the store keeps 1, 2. Index with layers='all'"):
        edit.shift(some, basis_of(clip.image_tower, "centered", [1, 2]))
    with pytest.raises(BadInput, match=r"of the convention 'official'.*Index with convention='centered'"):
        edit.shift(some, basis_of(clip.image_tower, "official"))
    with pytest.raises(BadInput, match=r"coordinates of 3 and 4 images"):
        edit.shift(some | {(0, 1): u[:3, 0, 1]}, basis)


def test_a_stores_heads_are_edited_without_its_pictures(tmp_path: Any) -> None:
    from clip_anatomy.store.index import index
    from clip_anatomy.store.store import Store

    clip = ca.load("demo")
    index(clip, "world:12", tmp_path / "s")
    store = Store.open(tmp_path / "s")
    edit = Edit.of(clip, "6.1,7.2", store.moments())
    moved = store.embeddings(unit=True) + edit.shift(
        {pair: store.heads(*pair) for pair in edit.parts.heads}, store.basis
    )
    world = clip.pixels([picture.data for picture in open_dataset("world:12")])
    with torch.no_grad():
        plain, found = EditedClip(clip, edit).encode_both(world)
    close(moved, found / plain.norm(dim=-1, keepdim=True), 2e-3)  # a store keeps half precision


def test_means_are_those_of_the_parts_in_any_batches(clip: Any) -> None:
    images = pixels(37, 3)
    means, parts = Means.of(clip, images.split(5), class_to_class=True), ca.decompose(clip, images)
    length = parts.embedding.norm(dim=-1)[:, None, None]
    close(means.heads, (parts.heads / length[..., None]).mean(0))
    close(means.mlps, (parts.mlps / length).mean(0))
    assert means.class_to_class is not None
    close(means.class_to_class.sum(1), (parts.class_to_class() / length).mean(0))
    assert means.count == 37
    moments = ca.Moments.of(parts, basis=basis_of(clip.image_tower))
    for one, other in zip(
        Edit.of(clip, "all", moments).replacements,
        Edit.of(clip, "all", Means.of(clip, images)).replacements,
        strict=True,
    ):
        assert one.baseline is not None
        assert other.baseline is not None
        close(one.baseline, other.baseline, 1e-4)


# ---- what cannot be made


def poisoned(means: Means) -> Means:
    heads = means.heads.clone()
    heads[0, 1, 3] = float("nan")
    return replace(means, heads=heads)


def official_span(clip: Any) -> Any:
    moments = ca.Moments.of(ca.decompose(clip, pixels(30), "official"), basis=basis_of(clip.image_tower, "official"))
    return ca.textspan(moments, torch.randn(5, 12, generator=torch.Generator().manual_seed(0)), texts_per_head=2)


BAD_MAKING = {
    "no such head": (lambda c, m: Edit.of(c, "9.9", m), r"heads that do not exist: 9\.9. Type LAYER\.HEAD"),
    "no such mlp": (lambda c, m: Edit.of(c, Selection(mlps=(7,)), m), r"mlp=7: no such layer"),
    "tokens": (lambda c, m: Edit.of(c, "token=3", m), r"places in one image.*replace_parts\(clip, images"),
    "no means": (lambda c, m: Edit.of(c, "0.1"), r"needs means, and none are given.*or by='zero'"),
    "NaN means": (lambda c, m: Edit.of(c, "0.1", poisoned(m)), r"head 0\.1: 1 of the 12 numbers of its mean are NaN"),
    "unknown by": (lambda c, m: Edit.of(c, "0.1", m, by="magic"), r"by 'magic'\? .*Type one of: mean, zero, texts"),
    "texts without span": (lambda c, m: Edit.of(c, "0.1", m, "texts"), r"needs what TextSpan found. Type span="),
    "directions elsewhere": (
        lambda c, m: Edit.of(c, "0.1", m, directions={(1, 1): torch.eye(12)}),
        r"heads that are not selected: 1\.1",
    ),
    "directions too wide": (
        lambda c, m: Edit.of(c, "0.1", m, directions={(0, 1): torch.eye(13)}),
        r"\[k, 12\] was expected",
    ),
    "directions zero": (lambda c, m: Edit.of(c, "0.1", m, directions={(0, 1): torch.zeros(1, 12)}), r"all zero"),
    "directions NaN": (
        lambda c, m: Edit.of(c, "0.1", m, directions={(0, 1): torch.full((1, 12), float("nan"))}),
        r"directions hold NaN",
    ),
    "skew frame": (
        lambda c, m: Replacement("head", 0, 1, "zero", frame=torch.ones(2, 12)),
        r"not orthonormal \(off by .*Type directions=",
    ),
    "mlps from moments": (
        lambda c, m: Edit.of(c, "mlp=1", ca.Moments.of(ca.decompose(c, pixels(3)))),
        r"moments hold heads only, not MLP 1.*Means\.of\(clip, images\)",
    ),
    "class-to-class not measured": (
        lambda c, m: Edit.of(c, "class-to-class=1", Means.of(c, pixels(2))),
        r"Type Means\.of\(\.\.\., class_to_class=True\)",
    ),
    "another model's means": (
        lambda c, m: Edit.of(c, "0.1", Means.of(ca.load(tiny.open_clip_model(layers=3, heads=3, seed=8)), pixels(2))),
        r"the means are of another model",
    ),
    "another convention": (
        lambda c, m: Edit.of(c, "0.1", ca.Moments.of(ca.decompose(c, pixels(3), "official"))),
        r"under the convention 'official'.*Index with convention='centered'",
    ),
    "another convention's means": (
        lambda c, m: Edit.of(c, "0.1", Means.of(c, pixels(3), convention="official")),
        r"under the convention 'official'.*'centered' is needed here",
    ),
    "another convention's texts": (
        lambda c, m: Edit.of(c, "0.1", m, "texts", span=official_span(c)),
        r"the span was found under the convention 'official'.*convention='centered'",
    ),
    "another convention's means, in an ablation": (
        lambda c, m: ca.replace_parts(c, pixels(2), "0.1", over=Means.of(c, pixels(3), convention="official")),
        r"the means were taken under the convention 'official'; 'centered' is needed.*type convention='official'",
    ),
    "layers not kept": (
        lambda c, m: Edit.of(c, "0.1", ca.Moments.of(ca.decompose(c, pixels(3))).select([1, 2])),
        r"head 0\.1 is not in the means: they hold layers 1, 2. Index with layers='all'",
    ),
    "no images": (lambda c, m: Means.of(c, []), r"no image to take means of"),
    "not means": (lambda c, m: Edit.of(c, "0.1", {"mean": 1}), r"means of type dict"),
    "parts of another convention": (
        lambda c, m: Edit.of(c, "0.1", m).apply(ca.decompose(c, pixels(2), "official")),
        r"Type decompose\(clip, images, 'centered'\)",
    ),
}


@pytest.mark.parametrize("name", BAD_MAKING)
def test_bad_input_is_named_with_what_to_type(name: str, clip: Any, means: Means) -> None:
    make, message = BAD_MAKING[name]
    if name in ("not means", "unknown by"):  # the shape checks of the tests would refuse these before our own do
        with pytest.raises((ClipAnatomyError, TypeError)):
            make(clip, means)
        return
    with pytest.raises(ClipAnatomyError, match=message):
        make(clip, means)


def test_mean_pooling_has_no_class_token_and_a_resnet_no_layers() -> None:
    averaged = ca.load(tiny.open_clip_model(vision={"pool_type": "avg"}))
    with pytest.raises(BadSpec, match="no class token that could read from itself"):
        Edit.of(averaged, "class-to-class=0", by="zero")
    resnet = ca.load(tiny_resnet.resnet_model(), parity=False)
    images = pixels(3, size=(96, 96))
    edit = Edit.of(resnet, "0.1", Means.of(resnet, images))
    parts = ca.decompose(resnet, images)
    length = parts.embedding.norm(dim=-1, keepdim=True)
    expected = parts.embedding - parts.heads[:, 0, 1] + length * (parts.heads[:, 0, 1] / length).mean(0)
    close(edit.apply(parts), expected)
    with pytest.raises(BadSpec, match="which has heads only. Type heads"):
        Edit.of(resnet, "mlp=0", by="zero")
    with pytest.raises(UnsupportedModel, match=r"is a CLIP-ResNet: .*; .* Type edit\.apply\(decompose"):
        EditedClip(resnet, edit)
