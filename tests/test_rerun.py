"""Edits that later blocks feel: against the host's own forward with hooks, in every place where an edit is used."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_families
import torch
from modules import module_at
from torch import Tensor

import clip_anatomy as ca
from clip_anatomy.edits.edit import Edit
from clip_anatomy.edits.edited_clip import EditedClip
from clip_anatomy.errors import BadInput, BadSpec, UnsupportedModel
from clip_anatomy.split.basis import basis_of
from clip_anatomy.split.means import Means
from clip_anatomy.studies.repair_effect import best_rerun, validation_score

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def host() -> Any:
    return tiny.open_clip_model(layers=4, heads=3)


@pytest.fixture(scope="module")
def clip(host: Any) -> ca.Clip:
    return ca.load(host)


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def hooked(
    host: Any, pixels: Tensor, heads: dict[tuple[int, int], Tensor], mlps: dict[int, Tensor], d: int = 8
) -> Tensor:
    """The host's encode_image with the class row of some writes overwritten by hooks: independent of our forward."""
    handles = []
    for at, block in enumerate(host.visual.transformer.resblocks):
        some = {head: value for (layer, head), value in heads.items() if layer == at}
        if some:
            attention = block.attn

            def redone(module: Any, args: Any, kwargs: Any, output: Any, some: Any = some) -> Any:
                x = args[0] if args else kwargs["query"]  # [image, token, width], ln_1 of the stream
                q, k, v = torch.nn.functional.linear(x, module.in_proj_weight, module.in_proj_bias).chunk(3, -1)
                q, k, v = (one.unflatten(-1, (-1, d)).transpose(1, 2) for one in (q, k, v))
                z = ((q @ k.transpose(-1, -2)) * d**-0.5).softmax(-1) @ v
                for head, value in some.items():
                    z[:, head, 0] = value
                return (module.out_proj(z.transpose(1, 2).flatten(2)), None)

            handles.append(attention.register_forward_hook(redone, with_kwargs=True))
        if at in mlps:

            def held(module: Any, args: Any, output: Tensor, value: Tensor = mlps[at]) -> Tensor:
                output = output.clone()
                output[:, 0] = value
                return output

            handles.append(block.mlp.register_forward_hook(held))
    try:
        with torch.no_grad():
            return host.encode_image(pixels)
    finally:
        for handle in handles:
            handle.remove()


def test_zero_and_mean_equal_the_host_with_hooks(host: Any, clip: ca.Clip, pixels: Tensor) -> None:
    spec = "0.1,2.0,3.2+mlp=1,3"
    heads, mlps = [(0, 1), (2, 0), (3, 2)], [1, 3]
    zero = ca.replace_parts(clip, pixels, spec, by="zero", effect="rerun")
    nothing = {pair: torch.zeros(8) for pair in heads}
    expected = hooked(host, pixels, nothing, {layer: torch.zeros(24) for layer in mlps})
    torch.testing.assert_close(zero, expected, atol=1e-5, rtol=1e-4)
    trace = clip.image_tower.trace(pixels)
    means = {pair: trace.mixed[:, pair[0], pair[1]].mean(0) for pair in heads}
    expected = hooked(host, pixels, means, {layer: trace.mlp[:, layer].mean(0) for layer in mlps})
    found = ca.replace_parts(clip, pixels, spec, effect="rerun")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    direct = ca.replace_parts(clip, pixels, spec)
    assert not torch.allclose(found, direct, atol=1e-2)


def test_the_parts_of_the_rerun_are_those_that_are_held(clip: ca.Clip, pixels: Tensor) -> None:
    edit = Edit.of(clip, "1.0+mlp=2", Means.of(clip, pixels), effect="rerun")
    from clip_anatomy.edits.rerun import rerun_tower
    from clip_anatomy.split.parts import decompose_tower

    parts = decompose_tower(rerun_tower(clip.image_tower, edit.replacements), pixels, "centered")
    assert float(parts.residue.max()) < 1e-5
    assert torch.allclose(parts.trace.mixed[:, 1, 0], parts.trace.mixed[:1, 1, 0])
    assert torch.allclose(parts.trace.mlp[:, 2], parts.trace.mlp[:1, 2])
    assert not torch.allclose(parts.trace.mixed[:, 1, 1], parts.trace.mixed[:1, 1, 1])


def test_in_the_last_block_only_the_norm_tells_it_from_a_direct_effect(clip: ca.Clip, pixels: Tensor) -> None:
    """Nothing comes after: the direction before LayerNorm is the same, its σ is taken anew."""
    rerun = ca.replace_parts(clip, pixels, "mlp=3", by="zero", effect="rerun")
    trace = clip.image_tower.trace(pixels)
    row = trace.stream - trace.mlp[:, 3]
    tower = clip.image_tower
    expected = (
        torch.nn.functional.layer_norm(row, row.shape[1:], tower.ln_post.weight, tower.ln_post.bias) @ tower.projection
    )
    torch.testing.assert_close(rerun, expected, atol=1e-5, rtol=1e-4)


def test_direct_and_rerun_stand_in_one_edit(host: Any, clip: ca.Clip, pixels: Tensor) -> None:
    felt = Edit.of(clip, "1.0", by="zero", effect="rerun")
    both = felt + Edit.of(clip, "3.1", by="zero")
    assert both.descriptions == ["head 1.0 by zero, felt by later blocks", "head 3.1 by zero"]
    edited = EditedClip(clip, both)
    before, after = edited.encode_both(pixels)
    torch.testing.assert_close(before, host.encode_image(pixels), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(after, both.apply(ca.decompose(clip, pixels)), atol=1e-5, rtol=1e-4)
    from clip_anatomy.edits.rerun import rerun_tower
    from clip_anatomy.split.parts import decompose_tower

    parts = decompose_tower(rerun_tower(clip.image_tower, felt.replacements), pixels, "centered")
    torch.testing.assert_close(after, parts.embedding - parts.heads[:, 3, 1], atol=1e-5, rtol=1e-4)
    with pytest.raises(BadInput, match="two ways"):
        felt + Edit.of(clip, "1.0", by="zero")
    assert both - felt
    assert len(both.undo("1.0")) == 1


def test_saved_loaded_applied_and_exported(clip: ca.Clip, pixels: Tensor, tmp_path: Path) -> None:
    demo = ca.load("demo")
    from clip_anatomy.loading.demo import examples

    pictures = examples()[:4]
    edit = Edit.of(demo, "5.0,7.1+mlp=4", Means.of(demo, pictures), effect="rerun")
    path = edit.save(tmp_path / "edit.json")
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["schema"] == "clip-anatomy/edit/2"
    assert content["parts"][0]["effect"] == "rerun"
    again = Edit.load(path)
    wanted = EditedClip(demo, edit).encode_image(demo.pixels(pictures))
    torch.testing.assert_close(EditedClip(demo, again).encode_image(demo.pixels(pictures)), wanted)
    direct = ca.replace_parts(demo, pictures, "5.0,7.1+mlp=4", over=Means.of(demo, pictures))
    assert not torch.allclose(wanted, direct, atol=1e-2)
    import shutil

    import numpy as np

    (tmp_path / "photos").mkdir()
    for one in pictures:
        shutil.copy(one, tmp_path / "photos")
    ca.apply(path, tmp_path / "photos", out=tmp_path / "e.npz")
    kept = np.load(tmp_path / "e.npz")
    torch.testing.assert_close(torch.from_numpy(kept["embedding"]).sum(0), wanted.sum(0), atol=1e-4, rtol=1e-4)
    ca.export(path, out=tmp_path / "export")
    module = module_at(tmp_path / "export" / "edited_clip.py")
    torch.testing.assert_close(
        module.load(tmp_path / "export").encode_image(demo.pixels(pictures)), wanted, atol=1e-5, rtol=1e-4
    )


def test_along_directions_only_that_much_of_the_rerun_is_taken(
    host: Any, clip: ca.Clip, pixels: Tensor, tmp_path: Path
) -> None:
    rows = torch.randn(3, clip.vision.embed, generator=torch.Generator().manual_seed(2))
    basis, _ = torch.linalg.qr(rows.T)
    with torch.no_grad():
        plain, held = host.encode_image(pixels), hooked(host, pixels, {(1, 0): torch.zeros(8)}, {2: torch.zeros(24)})
    wanted = plain + (held - plain) @ basis @ basis.T
    edit = Edit.of(clip, "1.0+mlp=2", by="zero", effect="rerun", along=rows)
    assert (
        edit.descriptions[0]
        == "head 1.0 by zero, felt by later blocks, and of what that changes only along 3 directions"
    )
    again = Edit.load(edit.save(tmp_path / "edit.json"))
    for one in (edit, again):
        torch.testing.assert_close(EditedClip(clip, one).encode_image(pixels), wanted, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(one.apply(ca.decompose(clip, pixels)), wanted, atol=1e-5, rtol=1e-4)
    both = edit + Edit.of(clip, "3.1", by="zero")
    torch.testing.assert_close(
        EditedClip(clip, both).encode_image(pixels), both.apply(ca.decompose(clip, pixels)), atol=1e-5, rtol=1e-4
    )
    with pytest.raises(BadInput, match="different directions"):
        edit + Edit.of(clip, "1.1", by="zero", effect="rerun")
    with pytest.raises(BadSpec, match="effect='rerun'"):
        Edit.of(clip, "1.0", by="zero", along=rows)
    ca.export(edit, out=tmp_path / "out", model=clip)
    module = module_at(tmp_path / "out" / "edited_clip.py")
    torch.testing.assert_close(module.load(tmp_path / "out").encode_image(pixels), wanted, atol=1e-5, rtol=1e-4)


def test_what_cannot_be_felt_is_refused(clip: ca.Clip, pixels: Tensor) -> None:
    with pytest.raises(BadSpec, match="effect='direct'"):
        Edit.of(clip, "class-to-class=1", by="zero", effect="rerun")
    with pytest.raises(BadInput, match="Means.of"):
        Edit.of(clip, "1.0", ca.Moments.of(ca.decompose(clip, pixels)), effect="rerun")
    with pytest.raises(BadSpec, match="'direct', 'rerun'"):
        Edit.of(clip, "1.0", by="zero", effect="felt")
    siglip = ca.load(tiny_families.family("siglip"))
    with pytest.raises(UnsupportedModel, match="no row of its own"):
        Edit.of(siglip, "1.0", by="zero", effect="rerun")
    with pytest.raises(BadInput, match="a store cannot"):
        Edit.of(clip, "1.0", by="zero", effect="rerun").shift({}, basis_of(clip.vision))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ca.Store:
    place = tmp_path_factory.mktemp("rerun") / "store"
    ca.index(ca.load("demo"), "world:40:val:balanced", place, keep="heads,mlps")
    return ca.Store.open(place)


def test_a_study_by_rerun_is_of_the_edited_models_embeddings(store: ca.Store) -> None:
    import numpy as np

    from clip_anatomy.data.open_dataset import open_dataset
    from clip_anatomy.studies.rerun_embeddings import rerun_embeddings

    demo = ca.load("demo")
    pictures = [one.data for one in open_dataset("world:40:val:balanced")]
    means = Means.of(demo, pictures)
    edit = Edit.of(demo, "0.1,1.2+mlp=2", means, effect="rerun")
    rows = np.array([3, 8, 30])
    found = rerun_embeddings(store, demo, [(), edit.replacements], rows)
    some = demo.pixels([pictures[at] for at in rows])
    for values, expected in zip(found, EditedClip(demo, edit).encode_both(some), strict=True):
        torch.testing.assert_close(values, torch.nn.functional.normalize(expected, dim=-1), atol=1e-5, rtol=1e-4)
    told = ca.ablate(store, select=["0.1,1.2+mlp=2"], effect="rerun", label="colour", means=means)
    assert "felt by later blocks" in told.studies[0].summary()
    with pytest.raises(BadSpec, match="effect='direct'"):
        ca.ablate(store, study="class-to-class", effect="rerun", label="colour")


def test_repair_by_rerun_measures_the_edit_that_it_writes(store: ca.Store) -> None:
    found = ca.repair(store, label="count", select="0.1,1.2,2.4", effect="rerun", also=[])
    assert found.edit.reruns
    assert found.effect.to_dict()["effect"] == "rerun"
    direct = ca.repair(store, label="count", select="0.1,1.2,2.4", also=[])
    assert not direct.edit.reruns
    assert not torch.equal(found.effect.predicted[1], direct.effect.predicted[1])
    assert torch.equal(found.effect.predicted[0], direct.effect.predicted[0])
    with pytest.raises(BadSpec, match="0.1 along classes"):
        ca.repair(store, label="count", select="0.1 along cue", effect="rerun", also=[])
    with pytest.raises(BadSpec, match="effect='rerun'"):
        ca.repair(store, label="count", select="0.1 along classes", also=[])


def test_felt_along_the_classes_other_questions_are_answered_as_before(store: ca.Store) -> None:
    whole = ca.repair(store, label="count", select="0.1,1.2,2.4", effect="rerun", also=["colour"])
    found = whole.selecting("0.1,1.2,2.4 along classes")
    assert found.effect.ablation.spec == "0.1,1.2,2.4 along classes"
    assert torch.equal(found.effect.predicted, whole.effect.predicted)  # the answer hangs on these directions alone
    model, task = EditedClip(found.clip, found.edit), found.cue.task
    before, after = model.encode_both(found.clip.pixels(torch.randn(4, 3, 64, 64)))
    assert float((after - before).norm()) > 1e-3
    frame = task.class_frame
    outside = (after - before) - (after - before) @ frame.T @ frame
    torch.testing.assert_close(outside, torch.zeros_like(outside), atol=1e-5, rtol=0)
    tried = {one.ablation for one in found.cue.candidates if one.parts and not one.along_cue}
    scores = {
        one: validation_score(store, found.cue, replace(one, along="classes", effect="rerun"), found.clip).objective
        for one in tried
    }
    best = best_rerun(store, found.clip, found.cue)
    reached = scores[replace(best, along="", effect="direct")] if best.selection else found.cue.before.objective
    assert reached == pytest.approx(max(found.cue.before.objective, *scores.values()))


def test_onnx_holds_them_for_any_batch(clip: ca.Clip, host: Any, pixels: Tensor, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    rows = torch.eye(clip.vision.embed)  # along all directions: the same, by the other path
    edit = Edit.of(clip, "1.0+mlp=2", by="zero", effect="rerun", along=rows)
    folder = ca.export(edit, out=tmp_path / "out", onnx=True, model=clip).folder
    session = onnxruntime.InferenceSession(str(folder / "image.onnx"), providers=["CPUExecutionProvider"])
    wanted = hooked(host, pixels, {(1, 0): torch.zeros(8)}, {2: torch.zeros(24)})
    for count in (1, 5):
        given = session.run(None, {"image": pixels[:count].numpy()})[0]
        torch.testing.assert_close(torch.tensor(given), wanted[:count], atol=1e-4, rtol=1e-3)
