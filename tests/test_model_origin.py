"""A store and an edit open their model again as it was made: from any folder, after a move, with its checkpoint file; or say what they looked for."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import clip_anatomy as ca
from clip_anatomy.cli.main import main
from clip_anatomy.edits.edit import Edit
from clip_anatomy.edits.open_edited import open_edited
from clip_anatomy.errors import BadSpec, StoreError
from clip_anatomy.loading.model_origin import Origin
from clip_anatomy.store.store import Store
from clip_anatomy.store.store_model import model_of

pytestmark = pytest.mark.usefixtures("one_thread")
DEMO = Path(ca.__file__).parent / "loading/demo"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a model in models/small, left as it is: a store beside it, indexed by relative paths."""
    pytest.importorskip("open_clip")
    small = tmp_path / "work/models/small"
    small.mkdir(parents=True)
    for name in ("open_clip_config.json", "open_clip_model.safetensors"):
        shutil.copy(DEMO / name, small / name)
    monkeypatch.chdir(tmp_path / "work")
    assert main(["index", "world:6:test", "stores/s", "--model", "models/small"]) == 0
    return tmp_path


def test_a_store_opens_its_model_from_another_folder_and_after_a_move(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = ca.load("demo", parity=False).digest
    monkeypatch.chdir(place)
    assert model_of(Store.open("work/stores/s")).digest == wanted
    (place / "work").rename(place / "moved")  # both together: the way from the store to the model stays
    assert model_of(Store.open("moved/stores/s")).digest == wanted
    assert main(["index", "world:8:test", "moved/stores/s"]) == 0
    assert (
        main(["search", "moved/stores/s", "id:world-0-test-1", "--heads", "all", "--mode", "whole", "--out", "found"])
        == 0
    )
    (place / "moved/stores/s").rename(place / "elsewhere")
    with pytest.raises(BadSpec) as refused:
        model_of(Store.open("elsewhere"))
    assert f"looked for {place}/work/models/small and " in str(refused.value)
    assert "Type: model=FILE, with where it is now" in str(refused.value)
    assert model_of(Store.open("elsewhere"), "moved/models/small").digest == wanted


def test_an_edit_opens_its_model_too(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit = Edit.of(ca.load("models/small"), "7.0", by="zero")
    edit.save("edits.json")
    monkeypatch.chdir(place)
    assert open_edited("work/edits.json").clip.digest == edit.digest
    (place / "work").rename(place / "moved")
    assert open_edited("moved/edits.json").clip.digest == edit.digest
    (place / "moved/models").rename(place / "gone")
    with pytest.raises(BadSpec, match=r"looked for .*work/models/small"):
        open_edited("moved/edits.json")


def test_a_store_keeps_the_checkpoint_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_clip: Any = pytest.importorskip("open_clip")
    config = json.loads((DEMO / "open_clip_config.json").read_text())["model_cfg"]
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", {**open_clip.factory._MODEL_CONFIGS, "tiny": config})
    shutil.copy(DEMO / "open_clip_model.safetensors", tmp_path / "mine.safetensors")
    monkeypatch.chdir(tmp_path)
    clip = ca.load("open_clip:tiny", weights="mine.safetensors", preprocess=ca.load("demo", parity=False).preprocess)
    ca.index(clip, "world:4:test", "s")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert model_of(Store.open("../s")).digest == clip.digest
    (tmp_path / "mine.safetensors").rename(tmp_path / "yours.safetensors")
    with pytest.raises(BadSpec, match=r"looked for .*mine\.safetensors.* Type: model='open_clip:tiny', weights=FILE"):
        model_of(Store.open("../s"))
    assert model_of(Store.open("../s"), weights="../yours.safetensors").digest == clip.digest


def test_another_model_at_the_same_place_is_refused(place: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = place / "work/models/small/open_clip_model.safetensors"
    state = load_file(file)
    state["visual.proj"] = 2 * state["visual.proj"]
    save_file(state, file)
    with pytest.raises(StoreError, match=r"was made with models/small \(weights"):
        model_of(Store.open("stores/s"))


def test_specs_without_a_place_and_stores_of_before_stay_as_they_are(tmp_path: Path) -> None:
    assert Origin.of("demo").to_dict(tmp_path) == {"spec": "demo"}
    named = Origin.of("open_clip:ViT-B-32/openai")
    assert (named.place, named.spec_anywhere) == ("", "open_clip:ViT-B-32/openai")
    (tmp_path / "m").mkdir()
    assert Origin.of(f"hf:{tmp_path}/m").spec_anywhere == f"hf:{tmp_path}/m"
    ca.index(ca.load("demo"), "world:3:test", tmp_path / "s")
    said = json.loads((tmp_path / "s/store.json").read_text())
    del said["origin"]
    (tmp_path / "s/store.json").write_text(json.dumps(said, indent=2) + "\n")
    assert model_of(Store.open(tmp_path / "s")).name == "demo"


def test_a_checkpoint_beside_a_model_with_weights_of_its_own_is_never_left_unused_in_silence(tmp_path: Path) -> None:
    clip = ca.load("demo", parity=False)
    ca.index(clip, "world:40:test", tmp_path / "s")
    Edit.empty(clip).save(tmp_path / "e.json")
    opened, edit, out = open_edited(tmp_path / "e.json", clip), str(tmp_path / "e.json"), tmp_path / "out.npz"
    for model, given in ((None, "'demo'"), ("demo", "'demo'"), (clip, "a live Clip")):
        for call in (
            lambda **typed: ca.ablate(tmp_path / "s", **typed),
            lambda **typed: ca.repair(tmp_path / "s", **typed),
            lambda **typed: ca.repair("world:40", out=tmp_path / "r", **typed),
            lambda **typed: ca.apply(edit, "world:4", out=out, **typed),
            lambda **typed: ca.export(edit, out=tmp_path / "x", **typed),
            lambda **typed: ca.apply(opened, "world:4", out=out, **typed),
            lambda **typed: ca.check(typed["model"] or "demo", weights=typed["weights"]),
        ):
            with pytest.raises(
                BadSpec, match=r"^weights='x.pt' goes with open_clip:NAME, not with ('demo'|a live Clip)\. Type"
            ):
                call(model=model, weights="x.pt")
        with pytest.raises(BadSpec, match=rf"not with {given}\."):
            ca.ablate(tmp_path / "s", model=model, weights="x.pt")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["e.json", "s"]


def test_the_studio_opens_a_stores_model_likewise(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All is opened before a port that is taken is tried."""
    import socket

    pytest.importorskip("uvicorn")
    monkeypatch.chdir(place)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", "work/stores/s", "--port", port]) == 2
        assert f"127.0.0.1:{port} cannot be listened at" in capsys.readouterr().err
        (place / "work/models").rename(place / "gone")
        assert main(["serve", "work/stores/s", "--port", port]) == 2
        assert "models/small" in capsys.readouterr().err
    assert main(["serve", "--port", "99999"]) == 2
    assert "--port 99999: a whole number from 0 to 65,535 was expected" in capsys.readouterr().err
