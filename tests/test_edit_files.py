"""Edits add up, are taken out again, and are kept in small files that anyone can read."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from edits import SPEC, clip, close, means, model, pixels

import clip_anatomy as ca
from clip_anatomy.edits import edit_files
from clip_anatomy.edits.edit import Edit
from clip_anatomy.edits.edited_clip import EditedClip
from clip_anatomy.errors import BadInput, OutputError
from clip_anatomy.split.means import Means

__all__ = ["clip", "means", "model"]  # fixtures


# ---- algebra


def test_edits_compose_and_are_undone(clip: Any, means: Means) -> None:
    a, b = Edit.of(clip, "0.1,1.0", means, notes="a"), Edit.of(clip, "1.0+mlp=2", means, notes="b")
    both = a + b
    assert both.parts == a.parts | b.parts
    assert both.notes == "a; b"
    assert (both - b).descriptions == ["head 0.1 by its mean"]
    assert both.undo(b.parts).descriptions == both.undo("1.0+mlp=2").descriptions == (both - b).descriptions
    assert not both.undo()
    assert (Edit.empty(clip) + a).descriptions == a.descriptions
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
    assert (a.undo(zero.parts) + zero).descriptions == ["head 0.1 by zero"]
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
    assert (again.descriptions, again.measured_on, again.notes) == (
        edit.descriptions,
        "seven noises; 7 images",
        "ünsinn",
    )
    assert all(a.same(b) for a, b in zip(again.replacements, edit.replacements, strict=True))
    assert torch.equal(EditedClip(clip, again).encode_image(pixels(2)), EditedClip(clip, edit).encode_image(pixels(2)))
    edit.undo("0.1").save(path)  # an overwritten edit leaves no file of the old one
    assert len(list(tmp_path.iterdir())) == 2
    Edit.of(clip, "0.1", by="zero").save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["quiet.json"]
    assert Edit.load(path).descriptions == ["head 0.1 by zero"]


def test_an_interrupted_save_leaves_the_old_edit(clip: Any, means: Means, tmp_path: Path, monkeypatch: Any) -> None:
    path = Edit.of(clip, "0.1", means).save(tmp_path / "e.json")

    def full(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(edit_files, "write_text", full)
    with pytest.raises(KeyboardInterrupt):
        Edit.of(clip, "1.1", means).save(path)
    assert Edit.load(path).descriptions == ["head 0.1 by its mean"]
    assert len(list(tmp_path.iterdir())) == 2  # and nothing of the new one
    monkeypatch.undo()
    with pytest.raises(OutputError, match=r"an edit is a \.json file. Type .*e\.txt\.json"):
        Edit.empty(clip).save(tmp_path / "e.txt")
    with pytest.raises(OutputError, match="cannot be written"):
        Edit.of(clip, "1.1", means).save(tmp_path / "nowhere" / "e.json")


def test_a_copy_of_the_readable_file_alone_keeps_its_means(clip: Any, means: Means, tmp_path: Path) -> None:
    path = Edit.of(clip, "0.1", means).save(tmp_path / "e.json")
    copied = path.with_name("before.json")
    copied.write_text(path.read_text())
    Edit.of(clip, "1.1", means).save(path)
    assert Edit.load(copied).descriptions == ["head 0.1 by its mean"]
    assert Edit.load(path).descriptions == ["head 1.1 by its mean"]


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
    "nothing": (lambda p: Path(), r"no file of an edit is named.*several: a\.json\+b\.json"),
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
