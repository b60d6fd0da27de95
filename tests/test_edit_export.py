"""An edited model leaves the package: one file of torch code, or ONNX."""

import json
import runpy
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from edits import pixels
from modules import module_at
from torch import Tensor

import clip_anatomy as ca
from clip_anatomy.edits import export as exporting
from clip_anatomy.edits.edit import Edit
from clip_anatomy.edits.edited_clip import EditedClip
from clip_anatomy.edits.export import export
from clip_anatomy.errors import MissingExtra, ModelError, OutputError
from clip_anatomy.split.means import Means

torch.set_num_threads(1)

ALONE = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("clip_anatomy", "open_clip", "transformers", "jaxtyping", "PIL"):
            raise ImportError(f"{name} is not there")
sys.meta_path.insert(0, Blocked())
import warnings
warnings.simplefilter("error")
import torch
from safetensors.torch import load_file, save_file
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from edited_clip import load
model = load(sys.argv[1])
given = load_file(sys.argv[2])
with torch.no_grad():
    found = {"image": model.encode_image(given["pixels"]), "text": model.encode_text(given["ids"])}
    found["features"] = model.get_image_features(pixel_values=given["pixels"])
    found["half"] = model.to(torch.bfloat16).encode_image(given["pixels"]).float()
save_file({k: v.contiguous().clone() for k, v in found.items()}, sys.argv[3])
"""


@pytest.fixture(scope="module")
def clip() -> Any:
    return ca.load(tiny.open_clip_model(layers=2, heads=3))


@pytest.fixture(scope="module")
def edit(clip: Any) -> Edit:
    means = Means.of(clip, pixels(6, 1), class_to_class=True)
    return Edit.of(clip, "0.1,1.2+mlp=1+class-to-class=0,1", means, measured_on="six noises", notes="for a test")


def run_alone(folder: Path, tmp_path: Path) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """What the exported file computes in a process that has no clip_anatomy."""
    from safetensors.torch import load_file, save_file

    images, ids = pixels(3, 2), torch.full((2, 12), 99)
    save_file({"pixels": images, "ids": ids}, tmp_path / "given.safetensors")
    where = [str(folder), str(tmp_path / "given.safetensors"), str(tmp_path / "found.safetensors")]
    done = subprocess.run(
        [sys.executable, "-c", ALONE, *where], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(tmp_path / "found.safetensors"), images, ids


@pytest.fixture(scope="module")
def exported(clip: Any, edit: Edit, tmp_path_factory: Any) -> Path:
    return export(edit, out=tmp_path_factory.mktemp("exported") / "out", model=clip).folder


def test_one_file_runs_without_the_package(clip: Any, edit: Edit, exported: Path, tmp_path: Path) -> None:
    found, images, ids = run_alone(exported, tmp_path)
    edited = EditedClip(clip, edit)
    expected = edited.encode_image(images)
    for name in ("image", "features"):
        torch.testing.assert_close(found[name], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found["text"], edited.encode_text(ids), atol=1e-5, rtol=1e-5)
    assert float((found["half"] - expected).norm() / expected.norm()) < 5e-2
    names = {"README.md", "check.safetensors", "config.json", "edit.json", "edited_clip.py", "weights.safetensors"}
    written = {p.name for p in exported.iterdir()} - {
        "__pycache__"
    }  # which the other process leaves, unless told not to
    assert written == names | {p.name for p in exported.glob("edit-*.safetensors")}
    assert Edit.load(exported / "edit.json").descriptions == edit.descriptions


@pytest.mark.parametrize("make", [tiny.transformers_model, lambda: tiny.open_clip_model(vision={"pool_type": "avg"})])
def test_the_file_reads_back_other_models_too(make: Any, tmp_path: Path) -> None:
    clip = ca.load(make())
    edit = Edit.of(clip, "0.1,1.0+mlp=1", Means.of(clip, pixels(6, 1)))
    again = exporting.standalone.load(export(edit, out=tmp_path / "out", model=clip).folder)
    torch.testing.assert_close(again.encode_image(pixels(2)), EditedClip(clip, edit).encode_image(pixels(2)))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_the_file_compiles_whole(clip: Any, edit: Edit, exported: Path, backend: str) -> None:
    alone = module_at(exported / "edited_clip.py")
    model, images = alone.load(exported), pixels(3, 2)
    expected = EditedClip(clip, edit).encode_image(images)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the compiler's own
        compiled = torch.compile(model.encode_image, backend=backend, fullgraph=True)
        for n in (3, 1):
            torch.testing.assert_close(compiled(images[:n]), expected[:n], atol=1e-5, rtol=1e-4)
    torch._dynamo.reset()


def test_the_file_checks_itself_and_sees_other_weights(exported: Path, tmp_path: Path, capsys: Any) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(exported, tmp_path / "out"))
    assert exporting.standalone.check(folder) < 1e-5
    runpy.run_path(str(folder / "edited_clip.py"), run_name="__main__")
    assert capsys.readouterr().out.startswith("relative difference from the embeddings taken on export:")
    weights = load_file(folder / "weights.safetensors")
    weights["replaced.constant"] += 0.1
    save_file(weights, folder / "weights.safetensors")
    assert exporting.standalone.check(folder) > 1e-2
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"schema": "clip-anatomy/edited-model/9"}))
    with pytest.raises(ValueError, match="this file reads 'clip-anatomy/edited-model/1'"):
        exporting.standalone.load(folder)
    with pytest.raises(ValueError, match=r"pixels are \[3, 32, 32\]; .*Type pixels\[None\]"):
        exporting.standalone.load(exported).encode_image(pixels(1)[0])


def test_onnx_agrees_for_any_batch_says_nothing_and_is_not_kept_where_it_disagrees(
    clip: Any, edit: Edit, tmp_path: Path, capfd: Any, monkeypatch: Any
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    if torch.__version__ < "2.7":  # its exporter fixes the batch, which the proof notices
        with pytest.raises(ModelError, match="Type: pip install -U torch onnxscript; or leave ONNX out"):
            export(edit, out=tmp_path / "out", onnx=True, model=clip)
        return
    folder = export(edit, out=tmp_path / "out", onnx=True, model=clip).folder
    said = capfd.readouterr()
    assert said.out + said.err == ""
    told = (folder / "README.md").read_text()
    assert "`image` [batch, 3, 32, 32]" in told
    assert "`text` [batch, 12]" in told
    edited = EditedClip(clip, edit)

    def run(name: str, given: Tensor) -> Tensor:
        session = onnxruntime.InferenceSession(str(folder / f"{name}.onnx"), providers=["CPUExecutionProvider"])
        return torch.tensor(session.run(None, {name: given.numpy()})[0])

    ids = torch.randint(1, 98, (5, 12), generator=torch.Generator().manual_seed(0))
    ids[torch.arange(5), torch.tensor([3, 11, 5, 7, 2])] = 99
    pairs = [(edited.encode_image(pixels(n, n)), run("image", pixels(n, n))) for n in (1, 4, 7)]
    for ours, theirs in [*pairs, (edited.encode_text(ids), run("text", ids))]:
        assert float(((ours - theirs).norm(dim=-1) / ours.norm(dim=-1)).max()) < 1e-4

    # A file that is not this edit's: written again with the other edit's image.onnx.
    monkeypatch.setattr(torch.onnx, "export", lambda _, __, path, **more: shutil.copy(folder / path.name, path))
    with pytest.raises(ModelError, match=r"onnxruntime's image embeddings differ by .*export without ONNX"):
        export(Edit.of(clip, "1.0", by="zero"), out=tmp_path / "other", onnx=True, model=clip)
    assert list(tmp_path.iterdir()) == [folder]


def test_only_its_own_export_is_replaced(
    clip: Any, edit: Edit, exported: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "out"))
    means = next(folder.glob("edit-*.safetensors"))
    (folder / "runs").mkdir()
    (folder / "runs" / "best.pt").write_text("a week of training")
    (folder / "edit-mine.safetensors").write_text("mine")
    found = export(Edit.empty(clip), out=folder, model=clip)
    assert (folder / "runs" / "best.pt").exists()
    assert (folder / "edit-mine.safetensors").exists()
    assert not means.exists()  # of the edit before
    assert sorted(found.files) == sorted(
        {p.name for p in folder.iterdir()} - {"runs", "edit-mine.safetensors", "__pycache__"}
    )
    assert "nothing: these are the model's own embeddings" in (folder / "README.md").read_text()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match=r"is no exported model. Type another folder: out=NAME"):
        export(edit, out=mine, model=clip)
    assert (mine / "thesis.txt").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is no exported model"):
        export(edit, out=tmp_path / "file", model=clip)
    for here in (folder, folder / "inside"):
        here.mkdir(exist_ok=True)
        monkeypatch.chdir(here)
        with pytest.raises(OutputError, match=r"is where you are.*Type a folder in it: out=NAME"):
            export(edit, out=folder if here != folder else ".", model=clip)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(exporting, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"onnx is not installed. Type: pip install 'clip-anatomy\[export\]'"):
        export(edit, out=tmp_path / "other", onnx=True, model=clip)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "mine", "out"]
