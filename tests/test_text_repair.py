"""Repair of the text tower: class texts that say where a thing lies, on pictures of things that lie elsewhere."""

import json

import pytest
import torch
from modules import BENCH, module_at
from PIL import Image
from torch.nn.functional import normalize

import clip_anatomy as ca
from clip_anatomy.cli.main import main
from clip_anatomy.edits.edit import Edit
from clip_anatomy.edits.edited_clip import EditedClip
from clip_anatomy.errors import BadInput, BadSpec
from clip_anatomy.naming.text_explanation import text_moments

pytestmark = pytest.mark.usefixtures("one_thread")
planting = module_at(BENCH / "text_tower.py")
NAMES, CUE = planting.NAMES, planting.CUE


@pytest.fixture(scope="module")
def demo() -> ca.Clip:
    return ca.load("demo")


@pytest.fixture(scope="module")
def planted(demo, tmp_path_factory):
    """Pictures whose class text names a context that is wrong for half of them."""
    place = tmp_path_factory.mktemp("planted")
    planting.plant(demo, place, "world:500:val:balanced", 24)
    return place / "store"


def test_an_edit_of_the_text_tower_is_the_split_without_its_heads(demo, tmp_path):
    texts = ["a bird in the sky", "a red circle", "two fish"]
    parts = ca.decompose_text(demo, texts)
    length = parts.embedding.norm(dim=-1, keepdim=True)
    moments = text_moments(demo, texts)
    mean = (parts.heads / length[..., None, None]).mean(0)
    edit = Edit.of(demo, "1.0,1.2", moments, tower="text")
    wanted = parts.embedding - parts.heads[:, 1, 0] - parts.heads[:, 1, 2] + length * (mean[1, 0] + mean[1, 2])
    assert edit.descriptions[0] == "text tower's head 1.0 by its mean"
    again = Edit.load(edit.save(tmp_path / "edit.json"))
    for one in (edit, again):
        model = EditedClip(demo, one)
        torch.testing.assert_close(model.encode_text(demo.ids(texts)), wanted, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(one.apply(parts), wanted, atol=1e-5, rtol=1e-4)
        pixels = torch.randn(2, 3, 64, 64)
        torch.testing.assert_close(model.encode_image(pixels), demo.image_tower.encode(pixels), atol=1e-5, rtol=1e-4)
    averaged = model.embed_texts(["bird"], ["a {} in the sky", "one {}"])
    each = normalize(model.encode_text(demo.ids(["a bird in the sky", "one bird"])), dim=-1).mean(0)
    torch.testing.assert_close(averaged[0], normalize(each, dim=0), atol=1e-5, rtol=1e-4)
    ca.export(edit, out=tmp_path / "out", model=demo)
    module = module_at(tmp_path / "out" / "edited_clip.py")
    torch.testing.assert_close(module.load(tmp_path / "out").encode_text(demo.ids(texts)), wanted, atol=1e-5, rtol=1e-4)
    with pytest.raises(BadInput, match="text tower"):
        edit + Edit.of(demo, "1.0", by="zero")
    with pytest.raises(BadSpec, match="tower='image'"):
        Edit.of(demo, "mlp=1", by="zero", tower="text")


def test_a_planted_context_is_found_and_taken_out(demo, planted, tmp_path, capsys):
    found = ca.repair(planted, classes=list(NAMES.values()), cue=CUE, tower="text", cost=5.0)
    assert isinstance(found, ca.TextRepair)
    effect = found.effect
    assert effect.selection
    assert effect.mean.after > effect.mean.before + 0.05
    store, task = found.store, found.task
    texts = normalize(EditedClip(demo, found.edit).embed_texts(list(task.main.classes), ["a photo of a {}."]), dim=-1)
    said = (store.embeddings(found.split.test, unit=True) @ texts.T).argmax(1)
    right = (said == task.main.labels_of(store, found.split.test)).double().mean()
    assert float(right) == pytest.approx(effect.average.after)
    assert not set(found.split.validation) & set(found.split.test)
    command = ["repair", str(planted), "--tower", "text", "--cue", CUE, "--select", "1.0 along cue", "--out", str(tmp_path / "out"), "--yes"]  # fmt: skip
    assert main(command) == 0
    assert "Heads of the text tower" in capsys.readouterr().out
    told = json.loads((tmp_path / "out" / "repair.json").read_text())
    assert (told["tower"], told["ablated"]) == ("text", "1.0 along cue")
    with Image.open(tmp_path / "out" / "repair.png") as figure:
        assert figure.width > 400
    edit = Edit.load(tmp_path / "out" / "edit.json")
    assert (edit.tower, edit.parts.spec) == ("text", "1.0")
    photos = planted.parent / "photos"
    applied = ca.apply(tmp_path / "out" / "edit.json", photos, out=tmp_path / "e.npz", texts=list(NAMES.values()))
    assert applied.moved == pytest.approx(0, abs=0.1)  # pictures are embedded as before; only texts move
    with pytest.raises(BadSpec, match="tower='text'"):
        ca.repair(planted, tower="text", effect="rerun", cue=CUE)
    with pytest.raises(BadSpec, match="'image', 'text'"):
        ca.repair(planted, tower="both", cue=CUE)
