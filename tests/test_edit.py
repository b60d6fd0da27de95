"""An edit replaces exactly the direct effects it names, in a drop-in encoder, and never touches the user's model."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_resnet
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import clip_anatomy as ca
from clip_anatomy.anatomy import edit_files
from clip_anatomy.anatomy.basis import basis_of
from clip_anatomy.anatomy.change import Change
from clip_anatomy.anatomy.edit import Edit
from clip_anatomy.anatomy.edited import EditedClip
from clip_anatomy.anatomy.means import Means
from clip_anatomy.anatomy.selection import Selection
from clip_anatomy.errors import BadInput, BadSpec, ClipAnatomyError, OutputError, UnsupportedModel

torch.set_num_threads(1)
SPEC = "0.1,1.0,2.2+mlp=0,2+class-to-class=1,2+start"


def pixels(n: int, seed: int = 0, size: tuple[int, int] = (32, 32)) -> Tensor:
    return torch.randn(n, 3, *size, generator=torch.Generator().manual_seed(seed))


def close(a: Tensor, b: Tensor, atol: float = 2e-5) -> None:
    a, b = a.detach().double(), b.detach().double()
    torch.testing.assert_close(a, b, atol=atol * float(b.abs().max()), rtol=0)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return tiny.open_clip_model(layers=3, heads=3)


@pytest.fixture(scope="module")
def clip(model: nn.Module) -> Any:
    return ca.load(model)


@pytest.fixture(scope="module")
def means(clip: Any) -> Means:
    return Means.of(clip, pixels(7, 9), class_to_class=True)


# ---- it is what it says


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


def test_it_equals_a_longhand_replacement_from_the_hosts_modules() -> None:
    import copy

    host = tiny.open_clip_model(layers=3, heads=3)
    clip = ca.load(host)
    twin = copy.deepcopy(host)
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
    edit = Edit.of(clip, SPEC, Means.of(clip, pixels(7, 9), class_to_class=True))
    close(edit.apply(ca.decompose(clip, pixels(4))), new)
    close(EditedClip(clip, edit).encode_image(pixels(4)), new)


kinds = st.sampled_from(
    [
        {},
        {"no_ln_pre": True},
        {"ls_init_value": 0.5},
        {"mlp_ratio": 2.0},
        {"pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True},
        {"pool_type": "avg"},
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
    clip = ca.load(tiny.open_clip_model(**shape, vision=vision, seed=data.draw(st.integers(0, 9))))
    layers, heads = shape["layers"], shape["heads"]
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
    size = data.draw(st.sampled_from([(32, 32), (16, 40)]))
    images = pixels(3, 2, size)
    close(EditedClip(clip, edit).encode_image(images), edit.apply(ca.decompose(clip, images)), 5e-5)


@pytest.mark.parametrize("size", [(16, 40), (16, 64)])  # (16, 64) has as many patches as the model's own (32, 32)
def test_an_empty_edit_takes_pictures_of_any_size(clip: Any, size: tuple[int, int]) -> None:
    images = pixels(2, 3, size)
    edit = Edit.of(clip, Selection(), by="zero")
    close(EditedClip(clip, edit).encode_image(images), ca.decompose(clip, images).embedding, 5e-5)


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
    assert edit.told[0] == "head 0.0 by its texts (3 directions kept)"


def test_from_head_coordinates_alone(clip: Any, means: Means) -> None:
    basis, parts = basis_of(clip.image_tower), ca.decompose(clip, pixels(4))
    edit = Edit.of(clip, "0.1,2.1", means, directions={(2, 1): torch.eye(12)[:2]}) + Edit.of(clip, "1.2", by="zero")
    length = parts.embedding.norm(dim=-1, keepdim=True)
    u = basis.coordinates(parts.heads / length[..., None, None])
    shift = edit.shift({pair: u[:, pair[0], pair[1]] for pair in edit.parts.heads}, basis)
    close((parts.embedding / length + shift) * length, edit.apply(parts))
    with pytest.raises(BadInput, match=r"heads 2\.1 are replaced but"):
        edit.shift({(0, 1): u[:, 0, 1], (1, 2): u[:, 1, 2]}, basis)
    with pytest.raises(BadInput, match=r"only heads can be replaced.*Type EditedClip"):
        Edit.of(clip, "mlp=0", by="zero").shift({}, basis)


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
        Edit.of(clip, "all", moments).changes, Edit.of(clip, "all", Means.of(clip, images)).changes, strict=True
    ):
        assert one.mean is not None
        assert other.mean is not None
        close(one.mean, other.mean, 1e-4)


# ---- a drop-in encoder


def test_an_empty_edit_is_the_host_to_the_last_bit() -> None:
    for make in (tiny.open_clip_model, tiny.transformers_model):
        host: Any = make()
        edited = EditedClip(ca.load(host), Edit.empty(ca.load(host)))
        images, ids = pixels(5), torch.full((2, 12), 99)
        with torch.no_grad():
            if hasattr(host, "encode_image"):
                assert torch.equal(edited.encode_image(images), host.encode_image(images))
                assert torch.equal(
                    edited.encode_image(images, normalize=True), host.encode_image(images, normalize=True)
                )
                close(edited.encode_text(ids, normalize=True), host.encode_text(ids, normalize=True), 1e-6)
            else:
                theirs, ours = (
                    host.get_image_features(pixel_values=images),
                    edited.get_image_features(pixel_values=images),
                )
                assert torch.equal(getattr(ours, "pooler_output", ours), getattr(theirs, "pooler_output", theirs))
                assert type(ours) is type(theirs)
                ours = edited.get_text_features(input_ids=ids, attention_mask=torch.ones_like(ids))
                theirs = host.get_text_features(input_ids=ids, attention_mask=torch.ones_like(ids))
                close(getattr(ours, "pooler_output", ours), getattr(theirs, "pooler_output", theirs), 1e-6)
    demo = ca.load("demo")  # no host module: our own forward, proven on load
    images = pixels(2, size=(64, 64))
    close(EditedClip(demo, Edit.empty(demo)).encode_image(images), demo.encode_image(images), 1e-6)


def test_forward_logits_and_scale_as_in_open_clip(model: Any, clip: Any) -> None:
    edited, images, ids = EditedClip(clip, Edit.empty(clip)), pixels(3), torch.full((2, 12), 99)
    with torch.no_grad():
        for ours, theirs in zip(edited(images, ids), model(images, ids), strict=True):
            close(ours, theirs, 1e-6)
        for ours, theirs in zip(edited.get_logits(images, ids), model.get_logits(images, ids), strict=True):
            close(ours, theirs, 1e-5)
        assert edited(images, None)[1] is None
    close(edited.logit_scale.exp(), model.logit_scale.exp(), 1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_any_dtype_and_the_users_model_stays_bit_identical(
    clip: Any, model: Any, means: Means, dtype: torch.dtype
) -> None:
    def state() -> dict[str, Any]:
        return {k: (v.data_ptr(), v.dtype, v._version, v.clone()) for k, v in model.state_dict().items()}

    before = state()
    edit = Edit.of(clip, SPEC, means)
    edited = EditedClip(clip, edit)
    plain = edited.encode_image(pixels(3))
    edited.load_state_dict({k: torch.zeros_like(v) for k, v in edited.state_dict().items()})
    edited = EditedClip(clip, edit).to(dtype)
    found = edited.encode_image(pixels(3))
    assert found.dtype == dtype
    close(found, plain, {torch.float64: 1e-6, torch.float16: 2e-2, torch.bfloat16: 1e-1}[dtype])
    assert not list(edited.parameters())  # nothing that an optimiser could move
    with pytest.raises(AttributeError):
        _ = edited.visual
    for name, (pointer, kind, version, value) in state().items():
        assert (pointer, kind, version) == before[name][:3], name
        assert torch.equal(value, before[name][3])


def test_a_half_precision_model_is_edited_in_its_own_precision() -> None:
    clip = ca.load(tiny.open_clip_model(layers=2, heads=2, d=8).to(torch.bfloat16))
    edit = Edit.of(clip, "0.1,1.0+mlp=1", Means.of(clip, pixels(4)))
    found = EditedClip(clip, edit).encode_image(pixels(3))
    assert found.dtype == torch.bfloat16
    close(found, edit.apply(ca.decompose(clip, pixels(3))), 3e-2)


def test_batches_agree_with_one_by_one_and_gradients_reach_the_pixels(clip: Any, means: Means) -> None:
    edited, images = EditedClip(clip, Edit.of(clip, SPEC, means)), pixels(5).requires_grad_()
    batch = edited.encode_image(images)
    close(torch.cat([edited.encode_image(one[None]) for one in images]), batch, 1e-5)
    batch.sum().backward()
    assert images.grad is not None
    assert float(images.grad.abs().sum()) > 0
    assert edited.encode_image(images[:0]).shape == (0, 12)


def test_the_demo_edit_moves_the_answer_only_through_its_parts() -> None:
    """Of a text orthogonal to what the edited head can write, every dot product stays as it was."""
    clip = ca.load("demo")
    edit = Edit.of(clip, "7.1", Means.of(clip, pixels(4, size=(64, 64))))
    rows = basis_of(clip.image_tower).rows[7, 1]
    out = torch.eye(128, dtype=torch.float64) - rows.T @ rows
    a = EditedClip(clip, edit).encode_image(pixels(3, 1, (64, 64))).double()
    b = clip.encode_image(pixels(3, 1, (64, 64))).double()
    close(a @ out, b @ out, 1e-5)
    assert float((a - b).norm()) > 1e-3


# ---- algebra


def test_edits_compose_and_are_undone(clip: Any, means: Means) -> None:
    a, b = Edit.of(clip, "0.1,1.0", means, notes="a"), Edit.of(clip, "1.0+mlp=2", means, notes="b")
    both = a + b
    assert both.parts == a.parts | b.parts
    assert both.notes == "a; b"
    assert (both - b).told == ["head 0.1 by its mean"]
    assert both.undo(b.parts).told == both.undo("1.0+mlp=2").told == (both - b).told
    assert not both.undo()
    assert (Edit.empty(clip) + a).told == a.told
    images = pixels(3)
    disjoint = Edit.of(clip, "mlp=2", by="zero")
    parts = ca.decompose(clip, images)
    moved = (a.apply(parts) - parts.embedding) + (disjoint.apply(parts) - parts.embedding)
    close((a + disjoint).apply(parts) - parts.embedding, moved, 1e-5)
    close((a + disjoint - disjoint).apply(parts), a.apply(parts), 1e-6)


def test_a_conflict_another_model_and_what_is_not_there_are_named(clip: Any, means: Means) -> None:
    a, zero = Edit.of(clip, "0.1", means), Edit.of(clip, "0.1", by="zero")
    with pytest.raises(BadInput, match=r"replace head 0\.1 in two ways: head 0\.1 by its mean and head 0\.1 by zero"):
        _ = a + zero
    assert (a.undo(zero.parts) + zero).told == ["head 0.1 by zero"]
    other_means = Edit.of(clip, "0.1", Means.of(clip, pixels(3, 77)))
    with pytest.raises(BadInput, match="with other numbers"):
        _ = a + other_means
    with pytest.raises(BadInput, match=r"not in this edit.*head 0\.1 by zero"):
        _ = a - zero
    stranger = ca.load(tiny.open_clip_model(layers=3, heads=3, seed=5))
    with pytest.raises(BadInput, match="the edits are of two models"):
        _ = a + Edit.of(stranger, "0.1", by="zero")
    with pytest.raises(BadInput, match=r"made for another model: .*Type load\("):
        EditedClip(stranger, a)
    half = ca.load(tiny.open_clip_model(layers=3, heads=3).to(torch.bfloat16))
    with pytest.raises(BadInput, match=r"in float32; CLIP is here in bfloat16.*dtype='float32'"):
        EditedClip(half, a)


# ---- on disk


def test_it_is_a_small_readable_file_without_pickle(clip: Any, means: Means, tmp_path: Path) -> None:
    edit = Edit.of(clip, SPEC, means, measured_on="seven noises", notes="ünsinn") + Edit.of(
        clip, "1.2", means, directions={(1, 2): torch.eye(12)[:3]}
    )
    path = edit.save(tmp_path / "quiet.json")
    told = json.loads(path.read_text())
    assert told["schema"] == "clip-anatomy/edit/1"
    assert told["model"]["digest"] == clip.digest
    assert {"part": "head 0.1", "by": "mean", "mean": "head 0.1 mean"} in told["parts"]
    files = sorted(file.name for file in tmp_path.iterdir())
    assert files == [told["tensors"]["file"], "quiet.json"]
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 10_000
    again = Edit.load(path)
    assert (again.told, again.measured_on, again.notes) == (edit.told, "seven noises; 7 images", "ünsinn")
    assert all(a.same(b) for a, b in zip(again.changes, edit.changes, strict=True))
    assert torch.equal(EditedClip(clip, again).encode_image(pixels(2)), EditedClip(clip, edit).encode_image(pixels(2)))
    edit.undo("0.1").save(path)  # an overwritten edit leaves no file of the old one
    assert len(list(tmp_path.iterdir())) == 2
    Edit.of(clip, "0.1", by="zero").save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["quiet.json"]
    assert Edit.load(path).told == ["head 0.1 by zero"]


def test_an_interrupted_save_leaves_the_old_edit(clip: Any, means: Means, tmp_path: Path, monkeypatch: Any) -> None:
    path = Edit.of(clip, "0.1", means).save(tmp_path / "e.json")

    def full(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(edit_files, "write_text", full)
    with pytest.raises(KeyboardInterrupt):
        Edit.of(clip, "1.1", means).save(path)
    assert Edit.load(path).told == ["head 0.1 by its mean"]
    monkeypatch.undo()
    with pytest.raises(OutputError, match=r"an edit is a \.json file. Type .*e\.txt\.json"):
        Edit.empty(clip).save(tmp_path / "e.txt")
    with pytest.raises(OutputError, match="cannot be written"):
        Edit.of(clip, "1.1", means).save(tmp_path / "nowhere" / "e.json")


def change(path: Path, **new: Any) -> Path:
    path.write_text(json.dumps(json.loads(path.read_text()) | new))
    return path


def other(path: Path, name: str, value: Any) -> Path:
    told = json.loads(path.read_text())
    return change(path, model=told["model"] | {name: value})


def damaged(path: Path) -> Path:
    beside = path.with_name(json.loads(path.read_text())["tensors"]["file"])
    data = bytearray(beside.read_bytes())
    data[-3] ^= 0x40
    beside.write_bytes(data)
    return path


def half(path: Path) -> Path:
    path.with_name(json.loads(path.read_text())["tensors"]["file"]).unlink()
    return path


def cut(path: Path) -> Path:
    beside = path.with_name(json.loads(path.read_text())["tensors"]["file"])
    beside.write_bytes(beside.read_bytes()[:100])
    return path


def text(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


BAD_FILES = {
    "missing": (lambda p: p.with_name("no.json"), r"there is no edit .*Make one: clip-anatomy repair STORE"),
    "folder": (lambda p: p.parent, r"is a folder.*Type .*NAME\.json"),
    "cut json": (lambda p: text(p, p.read_text()[:150]), r"not a whole JSON file.*Make it again"),
    "not an edit": (lambda p: text(p, "[1]"), r"has the schema None.*Type the \.json file"),
    "newer schema": (lambda p: change(p, schema="clip-anatomy/edit/9"), r"edit/9.*Type: pip install --upgrade"),
    "no model": (lambda p: change(p, model={}), r"lacks or misspells 'name'|lacks or misspells 'layers'"),
    "no such layer": (lambda p: other(p, "layers", 1), r"heads that do not exist: 1\.0.*Type LAYER\.HEAD"),
    "another width": (lambda p: other(p, "embed", 13), r"its mean are \[1, 12\], \[1, 13\] was expected"),
    "unknown part": (
        lambda p: change(p, parts=[{"part": "heart 1.2", "by": "zero"}]),
        r"kind 'heart' is not known|part 'heart",
    ),
    "half a part": (
        lambda p: change(p, parts=[{"part": "head 1", "by": "zero"}]),
        r"part 'head 1' is not known. Type 'head 9\.3'",
    ),
    "twice": (lambda p: change(p, parts=[{"part": "mlp 1", "by": "zero"}] * 2), r"mlp 1 stands twice"),
    "unknown replacement": (
        lambda p: change(p, parts=[{"part": "mlp 1", "by": "magic"}]),
        r"by 'magic'.*Type one of: mean",
    ),
    "no mean": (
        lambda p: change(p, parts=[{"part": "mlp 1", "by": "mean"}]),
        r"mlp 1: replaced by its mean, but without a mean",
    ),
    "tensor not there": (
        lambda p: change(p, parts=[{"part": "mlp 1", "by": "mean", "mean": "gone"}]),
        r"the tensor 'gone' is not in the file beside it",
    ),
    "outside": (lambda p: change(p, tensors={"file": "../x.safetensors"}), r"names no file beside it"),
    "half": (half, r"is half of an edit: .* is not beside it. Copy that file"),
    "damaged": (damaged, r"is damaged or belongs to another edit"),
    "cut tensors": (cut, r"not a readable safetensors file"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_named_with_what_to_type(name: str, clip: Any, means: Means, tmp_path: Path) -> None:
    path = Edit.of(clip, "0.1,1.0", means).save(tmp_path / "e.json")
    spoil, message = BAD_FILES[name]
    with pytest.raises(BadInput, match=message):
        Edit.load(spoil(path))


def poisoned(means: Means) -> Means:
    from dataclasses import replace

    heads = means.heads.clone()
    heads[0, 1, 3] = float("nan")
    return replace(means, heads=heads)


BAD_MAKING = {
    "no such head": (lambda c, m: Edit.of(c, "9.9", m), r"heads that do not exist: 9\.9. Type LAYER\.HEAD"),
    "no such mlp": (lambda c, m: Edit.of(c, Selection(mlps=(7,)), m), r"mlp=7: no such layer"),
    "tokens": (lambda c, m: Edit.of(c, "token=3", m), r"places in one image.*ablate\(clip, images"),
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
        lambda c, m: Change("head", 0, 1, "zero", frame=torch.ones(2, 12)),
        r"not orthonormal \(off by .*Type directions=",
    ),
    "mlps from moments": (
        lambda c, m: Edit.of(c, "mlp=1", ca.Moments.of(ca.decompose(c, pixels(3)))),
        r"moments hold heads only; MLP 1.*Means\.of\(clip, images\)",
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
        lambda c, m: Edit.of(c, "0.1", ca.Moments.of(ca.decompose(c, pixels(3), "even"))),
        r"under the convention 'even'.*Index with --convention own",
    ),
    "layers not kept": (
        lambda c, m: Edit.of(c, "0.1", ca.Moments.of(ca.decompose(c, pixels(3))).select([1, 2])),
        r"head 0\.1 is not in the means: they hold layers 1, 2. Index with --layers all",
    ),
    "no images": (lambda c, m: Means.of(c, []), r"no image to take means of"),
    "not means": (lambda c, m: Edit.of(c, "0.1", {"mean": 1}), r"means of type dict"),
    "parts of another convention": (
        lambda c, m: Edit.of(c, "0.1", m).apply(ca.decompose(c, pixels(2), "even")),
        r"Type decompose\(clip, images, 'own'\)",
    ),
}


@pytest.mark.parametrize("name", BAD_MAKING)
def test_bad_input_is_named_with_what_to_type(name: str, clip: Any, means: Means) -> None:
    make, message = BAD_MAKING[name]
    if name in ("not means", "unknown by"):  # the shape checks of the tests would refuse these before our own do
        pytest.importorskip("jaxtyping")
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
    with pytest.raises(UnsupportedModel, match="is a CLIP-ResNet"):
        EditedClip(resnet, edit)
