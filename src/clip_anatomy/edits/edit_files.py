"""An edit on disk: one JSON file to read, and beside it the means as safetensors, named by their content.

The tensors are written first under a name that holds their hash, the JSON file comes last by a rename: at every moment the JSON
file on disk names tensors that are there, whatever is interrupted.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from clip_anatomy import __version__
from clip_anatomy.edits.replacement import EDIT_BYS, KINDS, Replacement
from clip_anatomy.edits.selection_parser import POOL
from clip_anatomy.errors import BadInput, BadSpec, OutputError
from clip_anatomy.files import digest, read_json, read_safetensors, write_safetensors, write_text
from clip_anatomy.loading.model_origin import Origin

__all__ = ["SCHEMA", "read_edit", "remove_unnamed", "write_edit"]

SCHEMA = "clip-anatomy/edit/1"
RERUN_SCHEMA = "clip-anatomy/edit/2"  # parts that later blocks feel, or of the text tower: an older reader must not take them for others
FORMAT = "clip-anatomy edit 1"
LARGEST = 2**20  # bytes of a JSON file that is looked into; an edit of every head of an H/14 has 40 kB
NAMED = re.compile(r".+-([0-9a-f]{12})\.safetensors")  # means, by what they hold
AGAIN = "Make it again with Edit.of(clip, selection, moments).save(path), or copy both of its files once more"


def write_edit(fields: Mapping[str, Any], path: Path) -> Path:
    """Write the fields of an `Edit`; see `Edit.save`."""
    if path.suffix != ".json":
        raise OutputError(f"{path}: an edit is a .json file. Type {path}.json")
    before = _tensor_file(path)
    tensors: dict[str, Tensor] = {}
    rows: list[dict[str, Any]] = []
    for one in fields["replacements"]:
        row: dict[str, Any] = {"part": one.name, "by": one.by}
        if one.effect != "direct":
            row["effect"] = one.effect
        for what, tensor in (("mean", one.baseline), ("directions", one.frame)):
            if tensor is not None:
                row[what] = f"{one.name} {what}"
                tensors[row[what]] = tensor.clone()  # parts of one re-run share their directions
        rows.append(row)
    digest = _hash(tensors)
    beside = path.with_name(f"{path.stem}-{digest[:12]}.safetensors")
    if tensors:
        write_safetensors(beside, tensors, {"format": FORMAT, "unit": "contribution / ‖embedding‖", "blake2b": digest})
    content = {
        "schema": RERUN_SCHEMA if any("effect" in row for row in rows) or fields["tower"] != "image" else SCHEMA,
        "made_by": f"clip-anatomy {__version__}",
        "model": {
            "name": fields["model"],
            **{name: fields[name] for name in ("digest", "dtype", "layers", "heads", "embed")},
            **({} if fields["tower"] == "image" else {"tower": fields["tower"]}),
            **({} if fields["origin"] is None else {"origin": fields["origin"].to_dict(path.parent)}),
        },
        "parts": rows,
        "unit": "contribution / ‖embedding‖ of the unedited image; convention centered",
        "measured_on": fields["measured_on"],
        "notes": fields["notes"],
        "tensors": {"file": beside.name, "blake2b": digest} if tensors else None,
    }
    try:
        write_text(path, _laid_out(content))
    except BaseException:
        if beside != before:
            _remove_unnamed(beside)
        raise
    if before is not None and before != beside:
        _remove_unnamed(before)
    return path


def remove_unnamed(path: Path) -> None:
    """Take away the means of earlier edits of this name in a folder of ours, where no edit names them any more."""
    for other in path.parent.glob(f"{path.stem}-*.safetensors"):
        _remove_unnamed(other)


def _remove_unnamed(tensors: Path) -> None:
    """Take away means that carry our mark, and that no edit beside them names: also no copy of its JSON file, whatever that is called."""
    name = NAMED.fullmatch(tensors.name)
    if name is None or tensors.is_symlink() or not tensors.is_file():
        return
    for other in tensors.parent.glob("*.json*"):
        try:
            if other.is_file() and other.stat().st_size < LARGEST and tensors.name.encode() in other.read_bytes():
                return
        except OSError:
            continue
    try:
        _, about = read_safetensors(tensors, FORMAT, "Edit.save")
    except BadInput:
        return
    if about.get("blake2b", "").startswith(name[1]):
        tensors.unlink(missing_ok=True)


def read_edit(path: Path) -> dict[str, Any]:
    """Read the fields of an `Edit`; see `Edit.load`."""
    if path == Path():
        raise BadInput("no file of an edit is named. Type the .json file that Edit.save wrote; several: a.json+b.json")
    if path.is_dir():
        raise BadInput(f"{path} is a folder; the .json file of an edit was expected. Type {path}/NAME.json")
    if not path.exists():
        raise BadInput(
            f"there is no edit {str(path)!r}. Make one: clip-anatomy repair STORE, or Edit.of(...).save(path)"
        )
    content: Any = read_json(path, f"It is not a whole JSON file of an edit. {AGAIN}", of=object, largest=LARGEST)
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema not in (SCHEMA, RERUN_SCHEMA):
        newer = isinstance(schema, str) and schema.startswith("clip-anatomy/edit/")
        why = "Type: pip install --upgrade clip-anatomy" if newer else "Type the .json file that Edit.save wrote"
        raise BadInput(f"{path} has the schema {schema!r}; {SCHEMA!r} was expected. {why}")
    tensors = _tensors(path, content.get("tensors"))
    try:
        model = content["model"]
        return {
            **{name: str(model[key]) for name, key in (("model", "name"), ("digest", "digest"), ("dtype", "dtype"))},
            **{name: int(model[name]) for name in ("layers", "heads", "embed")},
            "replacements": tuple(_replacement(row, tensors) for row in content["parts"]),
            "measured_on": str(content["measured_on"]),
            "notes": str(content.get("notes", "")),
            "origin": _origin(model, path.parent),
            "tower": str(model.get("tower", "image")),
        }
    except (BadInput, BadSpec) as error:
        raise BadInput(f"{path}: {error}") from error
    except Exception as error:
        raise BadInput(f"{path} lacks or misspells {error} of an edit. {AGAIN}") from error


def _origin(model: Mapping[str, Any], beside: Path) -> Origin | None:
    """Read where the model of an edit lies: the places it says, those that are there first."""
    places = {str(name): str(place) for name, place in dict(model.get("origin") or {}).items()}
    if not places:
        return None
    try:
        return Origin.read(places, beside, str(model["name"]))
    except BadSpec:  # only whoever opens the model has to be told
        return Origin(places["spec"], places.get("place", ""), places.get("weights", ""))


def _replacement(row: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Replacement:
    kind, _, at = str(row["part"]).partition(" ")
    layer, _, head = at.partition(".") if (kind, at) != ("mlp", "pool") else (str(POOL), "", "")
    if (
        kind not in KINDS
        or kind == "tokens"
        or (kind == "input-embedding") != (not at)
        or (kind == "head") != bool(head)
    ):
        raise BadSpec(
            f"part {row['part']!r} is not known. Type 'head 9.3', 'mlp 4', 'class-to-class 7' or 'input-embedding'"
        )
    if row["by"] not in EDIT_BYS:
        raise BadSpec(f"{row['part']} replaced by {row['by']!r}? That is not known. Type one of: {', '.join(EDIT_BYS)}")
    arrays: dict[str, Tensor] = {}
    for what, name in (("mean", "baseline"), ("directions", "frame")):
        if what in row:
            if row[what] not in tensors:
                raise BadInput(f"the tensor {row[what]!r} is not in the file beside it. {AGAIN}")
            arrays[name] = tensors[row[what]].float()
    known: tuple[Any, Any, Any] = (kind, row["by"], str(row.get("effect", "direct")))
    return Replacement(
        known[0],
        int(layer or -1),
        int(head or -1),
        known[1],
        arrays.get("baseline"),
        arrays.get("frame"),
        effect=known[2],
    )


def _tensors(path: Path, content: Any) -> dict[str, Tensor]:
    if content is None:
        return {}
    if (
        not isinstance(content, dict)
        or not isinstance(content.get("file"), str)
        or Path(content["file"]).name != content["file"]
    ):
        raise BadInput(f"{path}: its entry 'tensors' names no file beside it. {AGAIN}")
    beside = path.with_name(content["file"])
    if not beside.is_file():
        raise BadInput(f"{path} is half of an edit: {beside.name} is not beside it. Copy that file there too")
    tensors, _ = read_safetensors(beside, FORMAT, "Edit.save")
    if _hash(tensors) != content.get("blake2b"):
        raise BadInput(
            f"{beside} is damaged or belongs to another edit: its checksum is not the one in {path.name}. {AGAIN}"
        )
    return tensors


def _tensor_file(path: Path) -> Path | None:
    """Return the means that an edit which is to be overwritten names, if it is one of ours."""
    try:
        content = read_json(path, AGAIN, largest=LARGEST)
        name = content["tensors"]["file"] if content["schema"] in (SCHEMA, RERUN_SCHEMA) else ""
        ours = isinstance(name, str) and name.startswith(f"{path.stem}-") and Path(name).name == name
        return path.with_name(name) if ours else None
    except (BadInput, KeyError, TypeError):
        return None


def _hash(tensors: Mapping[str, Tensor]) -> str:
    ordered = [(name, tensors[name].detach().cpu().float().contiguous()) for name in sorted(tensors)]
    return digest(
        part for name, tensor in ordered for part in (repr((name, tuple(tensor.shape))), tensor.numpy().tobytes())
    )


def _laid_out(content: Mapping[str, Any]) -> str:
    """JSON with one part a line: short enough to read, long enough to compare with diff."""
    lines: list[str] = []
    for key, value in content.items():
        if key == "parts" and value:
            rows = ",\n".join(f"  {json.dumps(row, ensure_ascii=False)}" for row in value)
            lines.append(f'"parts": [\n{rows}\n ]')
        else:
            lines.append(f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False, allow_nan=False)}")
    return "{" + ",\n ".join(lines) + "}\n"
