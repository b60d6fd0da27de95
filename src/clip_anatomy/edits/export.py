"""`export`: write an edited model that runs without this package: one Python file over torch, or ONNX."""

import json
import logging
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clip_anatomy.atomic_output import Kind, atomic_output
from clip_anatomy.edits import standalone_encoder as standalone
from clip_anatomy.edits.edit import Edit
from clip_anatomy.edits.edited_clip import EditedClip
from clip_anatomy.edits.open_edited import open_edited
from clip_anatomy.edits.packed_source import packed_source
from clip_anatomy.errors import MissingExtra, ModelError, OutputError, reading
from clip_anatomy.files import path_of, resolved, write_safetensors
from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.parity import random_ids, random_pixels
from clip_anatomy.progress import Progress, silent
from clip_anatomy.public_functions import public
from clip_anatomy.results import Result

__all__ = ["MODULE", "ONNX_TOLERANCE", "Exported", "export"]

MODULE = "edited_clip.py"
EDIT = "edit.json"
ONNX_TOLERANCE = 1e-4
SCALED = {
    "shortest": "scaled to cover {0}, the middle cut out",
    "squash": "scaled to {0} whatever their aspect",
    "longest": "scaled to fit into {0}, the rest padded",
    "patches": "scaled to as many whole patches as {0} has, near their aspect",
}
KIND = Kind("export", standalone.CONFIG, standalone.SCHEMA)
LARGEST_IN_ONE_FILE = 2**30  # bytes of weights; a protobuf file ends at 2 GB


@dataclass(frozen=True, repr=False)
class Exported(Result):
    """A folder with an edited model that runs without this package.

    Attributes:
        folder: where it is.
        edit: what is replaced, in words, one entry a part.
        files: name → bytes.
    """

    folder: Path
    edit: tuple[str, ...]
    files: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, ready for JSON."""
        return {
            "schema": "clip-anatomy/export/1",
            "folder": str(self.folder),
            "edit": list(self.edit),
            "files": dict(self.files),
        }

    def summary(self) -> str:
        """Return the files with their sizes."""
        return "\n".join(f"{size / 1e3:>12,.1f} kB  {self.folder / name}" for name, size in self.files.items())


@public
def export(
    edit: "Edit | str | Path",
    *,
    out: str | Path = "clip-anatomy-export",
    onnx: bool = False,
    model: "Clip | str | None" = None,
    weights: str | None = None,
    progress: Progress | None = None,
) -> Exported:
    """Write an edited model so that it runs without clip-anatomy: one Python file over torch with its weights, or ONNX.

    The folder holds `edited_clip.py` (one file, which needs torch and safetensors only), its weights and config, the edit, what
    `python edited_clip.py` checks itself against, and a README. With `onnx` also `image.onnx` and `text.onnx`, which take any
    number of images or texts; both are run with onnxruntime before the folder is moved into place.

    Args:
        edit: an edit, or its .json file ("a.json+b.json" for several).
        out: folder to write, whole or not at all; an older export there is replaced.
        onnx: also write ONNX.
        model: the model of the edit, or its name or path, where it is found by another name; best in float32.
        weights: a checkpoint file for open_clip:NAME.
        progress: called with what is being done.

    Returns:
        The folder and its files.

    Raises:
        BadInput: the edit was made for another model.
        OutputError: the folder cannot be written, or holds something else.
        MissingExtra: onnx, onnxruntime or onnxscript is not installed.
        ModelError: the ONNX model's embeddings differ by more than 1e-4 of their length.
    """
    folder, tell = path_of(out).absolute(), progress or silent
    if onnx:
        for library in ("onnx", "onnxruntime", "onnxscript"):
            if find_spec(library) is None:
                raise MissingExtra(library, "export")
    tell("opening the model", 0, 1)
    edited = open_edited(edit, model, weights=weights, device="cpu")
    _refuse(folder)
    with atomic_output(folder, KIND) as output:
        tell(f"writing {out}", 0, 1)
        _write(edited, output.folder)
        if onnx:
            _write_onnx(edited, output.folder)
        output.write("README.md", _readme(edited, onnx))
        names = [*output.files, standalone.CONFIG]
        output.write(standalone.CONFIG, json.dumps({**edited.config, "files": names}, indent=1) + "\n")
    files = {name: (folder / name).stat().st_size for name in sorted(names)}
    return Exported(folder, tuple(edited.edit.descriptions), files)


def _write(model: EditedClip, part: Path) -> None:
    pixels = random_pixels(model.clip.image_tower)
    with torch.no_grad():
        known = {"pixels": pixels, "embedding": model.encode_both(pixels)[1]}
    write_safetensors(part / standalone.WEIGHTS, _plain(model.state_dict()), {})
    write_safetensors(part / standalone.CHECK, _plain(known), {})
    (part / MODULE).write_text(packed_source(), encoding="utf-8")
    model.edit.save(part / EDIT)


def _plain(tensors: dict[str, Any]) -> dict[str, Tensor]:
    """Copy tensors to ones of their own: what is borrowed may be a transposed view, or shared."""
    return {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}


class _Image(nn.Module):
    def __init__(self, model: standalone.EditedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        return self.model.encode_image(image)


class _Text(nn.Module):
    def __init__(self, model: standalone.EditedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, text: Tensor) -> Tensor:
        return self.model.encode_text(text)


def _write_onnx(model: EditedClip, part: Path) -> None:
    plain = standalone.EditedModel(model.config, _plain(model.state_dict())).float().eval()
    pixels = torch.cat([random_pixels(model.clip.image_tower).cpu().float()] * 2)
    ids = _texts(random_ids(model.clip.text_tower).cpu())
    for name, side, example in (("image", _Image(plain), pixels), ("text", _Text(plain), ids)):
        path = part / f"{name}.onnx"
        too_old = f"torch {torch.__version__} exports no batch of any size here. Type: pip install -U torch onnxscript; or leave ONNX out"
        with torch.no_grad(), _quiet(), reading(path.name, too_old, ModelError):
            torch.onnx.export(
                side.eval(),
                (example,),
                path,
                dynamo=True,
                verbose=False,
                input_names=[name],
                output_names=[f"{name}_embedding"],
                dynamic_shapes={name: {0: torch.export.Dim.DYNAMIC}},
                external_data=_bytes(side) > LARGEST_IN_ONE_FILE,
            )
            _prove(path, name, side, example)


def _texts(ids: Tensor) -> Tensor:
    """Return a text and two shorter ones, which end elsewhere: [1, token] → [3, token]."""
    shorter = [torch.cat([ids[:, cut:], torch.zeros_like(ids[:, :cut])], 1) for cut in (1, ids.shape[1] // 3)]
    return torch.cat([ids, *shorter])


def _prove(path: Path, name: str, side: nn.Module, example: Tensor) -> None:
    """Run the file with onnxruntime on one, two and three inputs, and compare."""
    import onnxruntime

    session: Any = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(1)
    for count in (1, 2, 3):
        inputs = example[torch.arange(count) % len(example)]
        if inputs.is_floating_point():
            inputs += torch.randn(inputs.shape, generator=generator)
        with torch.no_grad():
            ours = side(inputs)
        theirs = torch.from_numpy(session.run(None, {name: inputs.numpy()})[0])
        gap = float(((ours - theirs).norm(dim=-1) / ours.norm(dim=-1)).max())
        if not gap <= ONNX_TOLERANCE:
            raise ModelError(
                f"onnxruntime's {name} embeddings differ by {gap:.1e} of their length, {ONNX_TOLERANCE:.0e} is allowed. Use "
                f"{MODULE} instead: export without ONNX"
            )


def _bytes(module: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in module.state_dict().values())


@contextmanager
def _quiet() -> Generator[None]:
    """Silence the exporter's own notes (deprecations inside it, constants that it does not fold): they are not for our users."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx", "torch.export")]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _refuse(folder: Path) -> None:
    """Raise OutputError for a folder that is no place for an export: one with anything else in it, or the one where people are."""
    try:
        foreign = folder.exists() and not KIND.owns(folder) and (not folder.is_dir() or any(folder.iterdir()))
        here = resolved(folder) in (Path.cwd(), *Path.cwd().parents)
    except OSError as error:
        raise OutputError(f"{folder} cannot be read ({error}). Type another folder: out=NAME") from error
    if foreign:
        raise OutputError(f"{folder} is there and is no exported model. Type another folder: out=NAME")
    if here:
        raise OutputError(
            f"{folder} is where you are: an export has a folder of its own. Type a folder in it: out=NAME"
        )


def _readme(model: EditedClip, onnx: bool) -> str:
    edit, preprocess = model.edit, model.clip.preprocess
    rows, cols = preprocess.size
    context = model.clip.text_tower.grid[1]
    parts = "\n".join(f"- {one}" for one in edit.descriptions) or "- nothing: these are the model's own embeddings"
    measured = f"Means were taken over {edit.measured_on}.\n" if edit.measured_on else ""
    notes = f"\n{edit.notes}\n" if edit.notes else ""
    runtime = (
        f"\n`image.onnx` takes `image` [batch, 3, {rows}, {cols}] in float32 and `text.onnx` takes `text` [batch, {context}] in int64; "
        "any batch.\nWith onnxruntime both agreed with the file above to 1e-4 of an embedding's length when this was written.\n"
    )
    return f"""# {edit.model}, edited

Written by clip-anatomy; runs without it. In the image tower is replaced:

{parts}

{measured}{notes}
```python
from edited_clip import load            # this folder's one file: torch and safetensors
model = load(".")
model.encode_image(pixels)              # [image, 3, {rows}, {cols}] -> [image, {edit.embed}], not normalised
model.encode_text(ids)                  # token ids of the original model's tokenizer
```

`python {MODULE}` compares with embeddings that were taken when this was written.
{runtime if onnx else ""}
Pixels: {SCALED[preprocess.resize].format(f"{rows} x {cols}")}, {preprocess.interpolation}, RGB in 0..1, minus {list(preprocess.mean)}, divided by {list(preprocess.std)}.
"""
