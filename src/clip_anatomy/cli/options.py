"""The options that verbs share, each with its help text declared once; and what verbs do alike with their output.

A verb's signature takes them as types, so that its own docstring describes only what is its own:

    def explain(*images: str, texts: Texts = None, model: Model = "demo", weights: Weights = None, device: Device = "auto",
                out: Out = None, as_json: AsJson = False, strict: Strict = False, allow_urls: AllowUrls = False) -> int: ...

`Out` and `OutFile` have no help text: what is written, and where by default, is said in the docstring of the verb.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

# ---- model
MODELS = "demo | open_clip:NAME/TAG | open_clip:NAME with --weights | hf:ORG/NAME | a folder or file with a saved model"
Model = Annotated[str, Parameter(alias="-m", help=f"{MODELS}.")]
StoreModel = Annotated[
    str | None,
    Parameter(
        name="--model", alias="-m", help="the store's model under another name or path; by default as it was indexed."
    ),
]
EditModel = Annotated[
    str | None, Parameter(name="--model", alias="-m", help="the model of the edit under another name or path.")
]
Weights = Annotated[
    str | None,
    Parameter(help="a checkpoint file for open_clip:NAME; NAME/TAG keeps the preprocessing published for that tag."),
]
Device = Annotated[str, Parameter(help="auto, cpu, cuda, cuda:1, mps.")]
Dtype = Annotated[str, Parameter(help="float32, float16, bfloat16 or float64.")]

# ---- store
StoreFolder = Annotated[Path, Parameter(help="a store that `clip-anatomy index` made.")]
AtlasFile = Annotated[
    Path | None,
    Parameter(help="atlas.json, or folder of an atlas, that names the heads; by default the one kept in the store."),
]

# ---- pictures
Images = Annotated[
    str,
    Parameter(help="pictures, folders (with all folders in them), lists, tables, tars; - for paths on standard input."),
]
Size = Annotated[
    str | None,
    Parameter(
        help="crop (the model's own) | whole (nothing cut off, the model's own short side) | 512 (short side) | 336x448 (row x col)."
    ),
]
Window = Annotated[
    int | None,
    Parameter(
        help="look through square windows of so many pixels, for large pictures; by default at the picture's own size."
    ),
]
Stride = Annotated[int | None, Parameter(help="from one window to the next; by default half a window.")]
Demo = Annotated[bool, Parameter(help="take the bundled pictures, with their own descriptions if no text is given.")]
AllowUrls = Annotated[bool, Parameter(help="fetch pictures given as http(s) addresses.")]
Strict = Annotated[
    bool, Parameter(help="exit with 1 if any picture could not be used (the others are done all the same).")
]
BatchSize = Annotated[int | None, Parameter(name="--batch", help="images at once; by default found while working.")]
Workers = Annotated[int | None, Parameter(help="threads that decode.")]

# ---- texts
Texts = Annotated[
    list[str] | None,
    Parameter(
        name=["--text", "--texts"],
        alias="-t",
        help="what to look for; repeat it for several texts. A .txt file, or @FILE (@- for standard input): a text a line.",
    ),
]
Templates = Annotated[
    list[str] | None,
    Parameter(
        name=["--template", "--templates"],
        help="prompt with one {} for the texts; repeat it to average several. imagenet: the 80 of CLIP's own recipe.",
    ),
]

# ---- output
Pictures = Annotated[
    bool | None,
    Parameter(
        name="--pictures",
        negative="--no-pictures",
        help="draw picture files beside the page, or none; the page has all either way.",
    ),
]
Out = Annotated[Path | None, Parameter(alias="-o")]
OutFile = Annotated[Path, Parameter(alias="-o")]
AsJson = Annotated[
    bool,
    Parameter(name="--json", help="print all numbers as JSON on stdout; without --out nothing is drawn or written."),
]


def output_folder(out: Path | None, default: str, *, as_json: bool) -> Path | None:
    """Return the folder to write: the one that was named, the default one, or none where JSON alone was asked for."""
    return out if out is not None or as_json else Path(default)


def print_json(value: dict[str, Any]) -> None:
    """Print one result as JSON on stdout."""
    from clip_anatomy.atomic_output import as_json
    from clip_anatomy.progress import say

    say(as_json(value), end="")


def print_notes(notes: Iterable[str] = (), failed: Iterable[tuple[str, str]] = (), most: int = 20) -> None:
    """Print on stderr what a reader must know, each once, and which pictures could not be used."""
    from clip_anatomy.progress import note

    for one in dict.fromkeys(notes):
        note(f"note: {one}")
    lost = list(failed)
    for name, error in lost[:most]:
        note(f"not read: {error if name in error else f'{name}: {error}'}")
    if len(lost) > most:
        note(f"... and {len(lost) - most:,} more")
