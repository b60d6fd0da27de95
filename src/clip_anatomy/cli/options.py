"""The options that verbs share, each with its help text declared once; and what verbs do alike with their output.

A verb's signature takes single options as types, and those that always stand together as a group, so that its own docstring
describes only what is its own:

    def explain(*images: Images, texts: Texts = None, opening: ModelOptions = ModelOptions(),
                output: OutputOptions = OutputOptions(), strict: Strict = False) -> int: ...

A group is typed like its members: `--model`, `--weights`, `--device`.
"""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

if TYPE_CHECKING:
    from clip_anatomy.engine.engine import Engine
    from clip_anatomy.loading.clip import Clip
    from clip_anatomy.results import Result

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
Through = Annotated[
    Path | None,
    Parameter(
        help="a folder that `align VIT-STORE CLIP-STORE` wrote: read an image model without texts in the space of that CLIP."
    ),
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
Registers = Annotated[
    int,
    Parameter(
        help="give the model so many registers at test time: what it keeps in patches that show nothing goes there, and maps lose its outliers."
    ),
]
Window = Annotated[
    int | None,
    Parameter(
        help="look through square windows of so many pixels, for large pictures; by default at the picture's own size."
    ),
]
Stride = Annotated[int | None, Parameter(help="from one window to the next; by default half a window.")]
Demo = Annotated[
    bool,
    Parameter(help="take the bundled pictures too; their own descriptions where a text is needed and none is given."),
]
AllowUrls = Annotated[bool, Parameter(help="fetch pictures given as http(s) addresses.")]
Strict = Annotated[
    bool, Parameter(help="exit with 1 if any picture could not be used (the others are done all the same).")
]
BatchSize = Annotated[int | None, Parameter(name="--batch", help="images at once; by default found while working.")]
Workers = Annotated[int | None, Parameter(help="threads that decode.")]

# ---- many machines
EngineName = Annotated[
    str,
    Parameter(help="local (this process) | ray (every GPU, else every processor, of this machine or of a cluster)."),
]
Address = Annotated[
    str | None,
    Parameter(
        help="of a Ray cluster: auto (the one this machine belongs to) | HOST:PORT | ray://HOST:PORT; by default one is started here."
    ),
]

# ---- texts
Texts = Annotated[
    list[str] | None,
    Parameter(
        name=["--text", "--texts"],
        alias="-t",
        help="what to look for; repeat it for several texts. A .txt file, or @FILE (@- for standard input): a text a line.",
    ),
]
Versus = Annotated[
    str | None,
    Parameter(
        help="another picture, or another model of the same architecture (SPEC, folder): what this picture has more of for each text, part by part."
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
Out = Annotated[
    Path | None,
    Parameter(alias="-o", help="folder to write; by default clip-anatomy-VERB, and none with --json."),
]
OutFile = Annotated[Path, Parameter(alias="-o")]
AsJson = Annotated[
    bool,
    Parameter(name="--json", help="print all numbers as JSON on stdout; without --out nothing is drawn or written."),
]


# ---- groups
@Parameter(name="*")
@dataclass(frozen=True)
class ModelOptions:
    """How a model is opened."""

    model: Model = "demo"
    weights: Weights = None
    device: Device = "auto"
    through: Through = None

    def load(self) -> "Clip":
        """Open the model.

        Raises:
            ClipAnatomyError: what `clip_anatomy.load` and `Alignment.read` raise.
        """
        from clip_anatomy.loading.load import load

        clip = load(self.model, weights=self.weights, device=self.device)
        if self.through is None:
            return clip
        from clip_anatomy.studies.align import Alignment

        return Alignment.load(self.through).read(clip, device=self.device)


@Parameter(name="*")
@dataclass(frozen=True)
class StoreModelOptions:
    """How the model of a store is opened."""

    model: StoreModel = None
    weights: Weights = None
    device: Device = "auto"


@Parameter(name="*")
@dataclass(frozen=True)
class EngineOptions:
    """Where the work runs."""

    engine: EngineName = "local"
    address: Address = None

    def open(self) -> "AbstractContextManager[Engine]":
        """Open it, for as long as the verb runs.

        Raises:
            ClipAnatomyError: what `open_engine` raises.
        """
        from clip_anatomy.engine.engine import open_engine

        return open_engine(self.engine, address=self.address)


@Parameter(name="*")
@dataclass(frozen=True)
class ReadingOptions:
    """Which pictures are taken beside those that are typed, and what if some cannot be used."""

    demo: Demo = False
    strict: Strict = False
    allow_urls: AllowUrls = False

    def exit_code(self, failed: Sequence[object]) -> int:
        """Return 1 where pictures could not be used and that is to be an error, else 0."""
        return 1 if self.strict and failed else 0


@Parameter(name="*")
@dataclass(frozen=True)
class OutputOptions:
    """Where results go."""

    out: Out = None
    as_json: AsJson = False

    def folder(self, verb: str) -> Path | None:
        """Return the folder to write: the one that was named, the verb's own, or none where JSON alone was asked for."""
        return self.out if self.out is not None or self.as_json else Path(f"clip-anatomy-{verb}")

    def show(self, result: "Result") -> None:
        """Print a result: as JSON where that was asked for, else its summary."""
        print_result(result, as_json=self.as_json)


def print_result(result: "Result", *, as_json: bool) -> None:
    """Print a result on stdout, as JSON or as its summary."""
    from clip_anatomy.cli.wording import in_cli_words
    from clip_anatomy.progress import say

    if as_json:
        print_json(result.to_dict())
    else:
        lines = result.summary().split("\n")
        say("\n".join(in_cli_words(line) if line.startswith("note: ") else line for line in lines))


def print_json(value: dict[str, Any]) -> None:
    """Print one result as JSON on stdout."""
    from clip_anatomy.atomic_output import as_json
    from clip_anatomy.progress import say

    say(as_json(value), end="")


def print_notes(notes: Iterable[str] = (), failed: Iterable[tuple[str, str]] = (), most: int = 20) -> None:
    """Print on stderr what a reader must know, each once, and which pictures could not be used."""
    from clip_anatomy.cli.wording import in_cli_words
    from clip_anatomy.progress import note

    for one in dict.fromkeys(notes):
        note(f"note: {in_cli_words(one)}")
    lost = [(name, in_cli_words(error)) for name, error in failed]
    for name, error in lost[:most]:
        note(f"not read: {error if name in error else f'{name}: {error}'}")
    if len(lost) > most:
        note(f"... and {len(lost) - most:,} more")
