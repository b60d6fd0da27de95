"""Edited models from the command line, on the demo world: `apply` embeds a collection, `export` writes the model."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from edits import pixels
from PIL import Image
from torch import Tensor

import clip_anatomy as ca
from clip_anatomy.cli.main import main
from clip_anatomy.data.open_dataset import open_dataset
from clip_anatomy.edits import standalone_encoder as standalone
from clip_anatomy.edits.apply import apply
from clip_anatomy.edits.edit import Edit
from clip_anatomy.edits.edited_clip import EditedClip
from clip_anatomy.errors import BadInput, OutputError
from clip_anatomy.split.means import Means

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def demo() -> Any:
    return ca.load("demo")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: Any) -> Path:
    from clip_anatomy.data.world import World

    folder = tmp_path_factory.mktemp("pictures")
    for at, image in enumerate(World(split="test", length=9).batch(np.arange(9)).images):
        Image.fromarray(image).save(folder / f"{at}.png")
    (folder / "3.png").write_bytes(b"not a picture")
    (folder / "4.png").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def files(demo: Any, tmp_path_factory: Any) -> Path:
    folder = tmp_path_factory.mktemp("edits")
    means = Means.of(demo, pixels(5, 3, (64, 64)))
    Edit.of(demo, "7.1,7.2", means).save(folder / "a.json")
    Edit.of(demo, "mlp=7", means).save(folder / "b.json")
    Edit.of(demo, "7.1", by="zero").save(folder / "c.json")
    live = ca.load(tiny.open_clip_model())
    Edit.of(live, "0.0", by="zero").save(folder / "live.json")
    return folder


@pytest.mark.parametrize("suffix", ["npz", "safetensors", "jsonl"])
def test_apply_embeds_a_folder_and_names_bad_files(
    suffix: str, files: Path, pictures: Path, tmp_path: Path, capsys: Any
) -> None:
    demo = ca.load("demo")
    out = tmp_path / f"e.{suffix}"
    asked = ["-t", "a circle", "-t", "a bird", "--batch", "4"]
    spec = f"{files / 'a.json'}+{files / 'b.json'}"
    assert main(["apply", spec, str(pictures), "--out", str(out), *asked]) == 0
    told = capsys.readouterr()
    assert "3.png is not a picture" in told.err
    assert "4.png is empty" in told.err
    assert "7 images, 2 not used" in told.out
    assert re.search(r"  a (circle|bird) +first for +[\d.]+ % → +[\d.]+ % with the edit\n", told.out)
    names = ["0.png", "1.png", "2.png", "5.png", "6.png", "7.png", "8.png"]
    edited = EditedClip(demo, Edit.load(files / "a.json") + Edit.load(files / "b.json"))
    shown = demo.pixels([pictures / name for name in names])
    expected, plain = edited.encode_image(shown), demo.encode_image(shown)
    texts = torch.nn.functional.normalize(demo.encode_text(["a circle", "a bird"]), dim=-1)

    def chances(x: Tensor) -> Tensor:
        return (demo.logit_scale * torch.nn.functional.normalize(x, dim=-1) @ texts.T).softmax(-1)

    if suffix == "npz":
        with np.load(out, allow_pickle=False) as found:
            assert found["ids"].tolist() == names
            assert found["texts"].tolist() == ["a circle", "a bird"]
            got = {key: torch.tensor(found[key]) for key in ("embedding", "before", "after")}
    elif suffix == "safetensors":
        from safetensors import safe_open

        with safe_open(out, "pt") as handle:
            assert json.loads(handle.metadata()["ids"]) == names
            got = {key: handle.get_tensor(key) for key in ("embedding", "before", "after")}
    else:
        head, *rows = [json.loads(line) for line in out.read_text().splitlines()]
        assert (head["schema"], head["model"]) == ("clip-anatomy/applied/1", "demo")
        assert [row["id"] for row in rows] == names
        got = {"embedding": torch.tensor([row["embedding"] for row in rows])}
        got |= {key: torch.tensor([list(row[key].values()) for row in rows]) for key in ("before", "after")}
    torch.testing.assert_close(got["embedding"], expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(got["before"], chances(plain), atol=1e-4, rtol=0)
    torch.testing.assert_close(got["after"], chances(expected), atol=1e-4, rtol=0)
    assert [p.name for p in tmp_path.iterdir()] == [out.name]


def test_apply_speaks_json_and_is_strict_when_asked(files: Path, pictures: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "e.npz"
    code = main(["apply", str(files / "a.json"), str(pictures), "--out", str(out), "--json", "--strict"])
    told = json.loads(capsys.readouterr().out)
    assert code == 1
    assert (told["schema"], told["done"], len(told["failed"]), told["changed"]) == ("clip-anatomy/apply/1", 7, 2, None)
    assert told["moved"] > 0
    code = main(
        ["apply", str(files / "a.json"), str(pictures), "--out", str(out), "--json", "-t", "a circle", "-t", "a bird"]
    )
    told = json.loads(capsys.readouterr().out)
    with np.load(out, allow_pickle=False) as found:
        for column, text in enumerate(("a circle", "a bird")):
            counts = [int((found[key].argmax(1) == column).sum()) for key in ("before", "after")]
            assert told["first"][text] == counts


def test_where_memory_runs_out_smaller_batches_are_kept_to(files: Path, tmp_path: Path, demo: Any) -> None:
    tried: list[int] = []

    class Narrow(EditedClip):
        def encode_both(self, image: Tensor) -> tuple[Tensor, Tensor]:
            tried.append(len(image))
            if len(image) > 2:
                raise RuntimeError("CUDA out of memory")
            return super().encode_both(image)

    done = apply(Narrow(demo, Edit.load(files / "a.json")), open_dataset("world:7"), out=tmp_path / "e.npz", batch=4)
    assert done.done == 7
    assert tried == [4, 2, 2, 2, 1]  # the four that did not fit are not tried again


def test_a_folder_in_the_place_of_a_file_and_a_batch_of_none_are_named_before_any_work(
    files: Path, tmp_path: Path, demo: Any
) -> None:
    model = EditedClip(demo, Edit.load(files / "a.json"))
    (tmp_path / "e.npz").mkdir()
    with pytest.raises(OutputError, match=r"is a folder; a file was expected. Type out='.*e\.npz/embeddings\.npz'"):
        apply(model, open_dataset("world:2"), out=tmp_path / "e.npz")
    with pytest.raises(BadInput, match=r"batch=0: .* Type batch=1,"):
        apply(model, open_dataset("world:2"), out=tmp_path / "f.npz", batch=0)
    assert [p.name for p in tmp_path.iterdir()] == ["e.npz"]


def test_another_model_beside_an_edited_one_is_never_left_unused_in_silence(
    files: Path, tmp_path: Path, demo: Any
) -> None:
    edited, other = EditedClip(demo, Edit.load(files / "a.json")), ca.load("demo", parity=False)
    apply(edited, "world:2", out=tmp_path / "e.npz", model=demo)
    for model in (other, "demo"):
        with pytest.raises(BadInput, match=r"would not be used: this edited model is open, on demo. Leave model= away"):
            apply(edited, "world:2", out=tmp_path / "e.npz", model=model)


def test_the_function_takes_what_the_verb_takes(files: Path, tmp_path: Path, demo: Any) -> None:
    found = ca.apply(
        files / "a.json", "world:4", out=tmp_path / "f.jsonl", texts=["a bird", "a fish", "a bird"], model=demo
    )
    assert list(found.first) == ["a bird", "a fish"]  # a text that stands twice counts once
    assert any("was given 2 times" in note for note in found.notes)
    assert repr(found) == found.summary()
    assert json.loads(json.dumps(found.to_dict()))["done"] == 4
    exported = ca.export(Edit.load(files / "a.json"), out=tmp_path / "out")
    assert exported.files["edited_clip.py"] > 1000
    assert f"{exported.folder / 'edited_clip.py'}" in repr(exported)


def test_an_interrupted_apply_leaves_nothing_half_written(files: Path, tmp_path: Path, demo: Any) -> None:
    calls = 0

    class Stopping(EditedClip):
        def encode_both(self, image: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal calls
            calls += 1
            if calls > 1:
                raise KeyboardInterrupt
            return super().encode_both(image)

    model = Stopping(demo, Edit.load(files / "a.json"))
    for suffix in ("npz", "jsonl", "safetensors"):
        calls = 0
        (tmp_path / f"e.{suffix}").write_text("an older one")
        with pytest.raises(KeyboardInterrupt):
            apply(model, open_dataset("world:9"), out=tmp_path / f"e.{suffix}", batch=4)
        assert (tmp_path / f"e.{suffix}").read_text() == "an older one"
    assert len(list(tmp_path.iterdir())) == 3


def test_export_from_the_command_line(files: Path, tmp_path: Path, capsys: Any, demo: Any) -> None:
    out = tmp_path / "out"
    assert main(["export", str(files / "a.json"), "--out", str(out)]) == 0
    told = capsys.readouterr()
    assert "weights.safetensors" in told.out
    assert "from edited_clip import load" in told.err
    images = pixels(2, 5, (64, 64))
    expected = EditedClip(demo, Edit.load(files / "a.json")).encode_image(images)
    torch.testing.assert_close(standalone.load(out).encode_image(images), expected, atol=1e-5, rtol=1e-5)
    assert main(["export", str(out / "edit.json"), "--out", str(out), "--json"]) == 0  # from itself, onto itself
    assert json.loads(capsys.readouterr().out)["edit"] == ["head 7.1 by its mean", "head 7.2 by its mean"]


BAD = {
    "no edit": (["apply", "no.json", "world:2"], r"there is no edit 'no\.json'"),
    "conflict": (["apply", "{a}+{c}", "world:2"], r"replace head 7\.1 in two ways"),
    "another model": (["apply", "{live}", "world:2", "-m", "demo"], r"made for another model"),
    "live model": (["apply", "{live}", "world:2"], r"a model called 'CLIP', which cannot be opened.*Type --model"),
    "no folder": (["apply", "{a}", "nowhere"], r"there is no 'nowhere' here"),
    "nothing there": (["apply", "{a}", "{empty}"], r"empty holds no picture. Type a collection with"),
    "odd suffix": (["apply", "{a}", "world:2", "--out", "e.pt"], r"kept as \.npz, \.safetensors, \.jsonl"),
    "no place": (["apply", "{a}", "world:2", "--out", "nowhere/e.npz"], r"nowhere/e\.npz cannot be written"),
    "batch": (["apply", "{a}", "world:2", "--batch", "0"], r"Type --batch 1,"),
    "empty text": (["apply", "{a}", "world:2", "-t", " "], r"text 1 is empty"),
    "export elsewhere": (["export", "{a}", "--out", "{folder}"], r"is no exported model"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name: str, files: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    named = {key: str(files / f"{key}.json") for key in ("a", "c", "live")}
    words, message = BAD[name]
    words = [word.format(**named, empty=tmp_path / "empty", folder=files) for word in words]
    assert main(words) == 2
    assert re.search(message, capsys.readouterr().err)
    assert [p.name for p in tmp_path.iterdir()] == ["empty"]
