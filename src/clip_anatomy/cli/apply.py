"""`clip-anatomy apply` and `clip-anatomy export`: use an edited model on pictures, or anywhere else."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

if TYPE_CHECKING:
    from clip_anatomy.edits.apply import Applied
    from clip_anatomy.edits.edit import Edit
    from clip_anatomy.edits.edited_clip import EditedClip

SHOWN = 12  # texts in the summary


def apply(
    edit: str,
    source: str,
    *,
    out: Annotated[Path, Parameter(alias="-o")] = Path("embeddings.npz"),
    text: Annotated[list[str] | None, Parameter(name=["--text", "--texts"], alias="-t")] = None,
    template: list[str] | None = None,
    model: Annotated[str | None, Parameter(alias="-m")] = None,
    weights: str | None = None,
    batch: int = 32,
    workers: int | None = None,
    strict: bool = False,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
    device: str = "auto",
) -> int:
    """Embed pictures with an edited model, and say what the edit changes about them.

    Args:
        edit: an edit's .json file, as `clip-anatomy repair` and `Edit.save` write it; several joined by + are all applied.
        source: a folder | a .txt list | a table .csv, .json or .jsonl | tar files | hf-dataset:NAME[:SPLIT] | world:COUNT[:SPLIT] | one picture | a published data set such as waterbirds:FOLDER[:SPLIT].
        out: file to write: .npz, .safetensors or .jsonl. It holds ids and embeddings, and with texts the probabilities without and with the edit.
        text: what to choose between; repeat it for several texts.
        template: prompts with one {} for the texts; repeat it to average several.
        model: the model of the edit under another name or path.
        weights: a checkpoint file for open_clip:NAME.
        batch: images at once.
        workers: threads that decode.
        strict: exit with 1 if any picture could not be used (the others are done all the same).
        as_json: print the summary as JSON on stdout.
        device: auto, cpu, cuda, cuda:1, mps.

    Returns:
        Exit code: 0 done, 1 a picture could not be used under --strict.
    """
    from clip_anatomy.atomic_output import as_json as json_text
    from clip_anatomy.progress import note, progress
    from clip_anatomy.report.index_progress import walking

    with progress("opening the model"):
        from clip_anatomy.data.open_source import open_source
        from clip_anatomy.edits.apply import apply as run
        from clip_anatomy.loading.typed_texts import checked_texts

        asked = read_edits(edit)
        opened = open_source(source)
        edited = _open(asked, model, weights, device)
        questions = checked_texts(text, edited.clip.tokenizer) if text else []
    for question in questions:
        for remark in question.notes:
            note(f'note on "{question.short}": {remark}')
    with walking(source) as report:
        done = run(
            edited,
            opened,
            out,
            texts=[question.text for question in questions],
            templates=template,
            batch=batch,
            workers=workers,
            report=report,
        )
    for name, message in done.failed[:20]:
        note(f"not used: {name}: {message}")
    if len(done.failed) > 20:
        note(f"... and {len(done.failed) - 20:,} more")
    if as_json:
        print(
            json_text({"schema": "clip-anatomy/apply/1", "edit": asked.told, "model": asked.model, **vars(done)}),
            end="",
        )
    else:
        _tell(done, asked)
    return 1 if strict and done.failed else 0


def export(
    edit: str,
    *,
    out: Annotated[Path, Parameter(alias="-o")] = Path("clip-anatomy-export"),
    onnx: bool = False,
    model: Annotated[str | None, Parameter(alias="-m")] = None,
    weights: str | None = None,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Write an edited model so that it runs without clip-anatomy: one Python file over torch with its weights, or ONNX.

    Args:
        edit: an edit's .json file, as `clip-anatomy repair` and `Edit.save` write it; several joined by + are all in it.
        out: folder to write; an older export there is replaced.
        onnx: also image.onnx and text.onnx, run with onnxruntime and compared before they are kept.
        model: the model of the edit under another name or path.
        weights: a checkpoint file for open_clip:NAME.
        as_json: print what was written as JSON on stdout.

    Returns:
        Exit code 0.
    """
    from clip_anatomy.atomic_output import as_json as json_text
    from clip_anatomy.progress import note, progress

    asked = read_edits(edit)
    with progress(f"writing {out}"):
        from clip_anatomy.edits.export import MODULE
        from clip_anatomy.edits.export import export as write

        edited = _open(asked, model, weights, "cpu")
        folder = write(edited.clip, asked, out, onnx=onnx)
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    if as_json:
        print(
            json_text({"schema": "clip-anatomy/export/1", "folder": str(folder), "edit": asked.told, "files": sizes}),
            end="",
        )
        return 0
    for name, size in sizes.items():
        print(f"{size / 1e3:>12,.1f} kB  {folder / name}")
    note(
        f"in Python: sys.path.append({str(folder)!r}); from {MODULE.removesuffix('.py')} import load; model = load({str(folder)!r})"
    )
    return 0


def read_edits(spec: str) -> "Edit":
    """One edit, or several joined by `+`."""
    from functools import reduce
    from operator import add

    from clip_anatomy.edits.edit import Edit

    if Path(spec).exists() or "+" not in spec:
        return Edit.load(spec)
    return reduce(add, (Edit.load(part.strip()) for part in spec.split("+")))


def _open(edit: "Edit", model: str | None, weights: str | None, device: str) -> "EditedClip":
    from clip_anatomy.edits.edited_clip import EditedClip
    from clip_anatomy.errors import BadSpec
    from clip_anatomy.loading.load import load

    try:
        clip = load(model or edit.model, weights=weights, device=device, dtype=edit.dtype)
    except BadSpec as error:
        if model is not None:
            raise
        raise BadSpec(
            f"the edit was made for a model called {edit.model!r}, which cannot be opened by that name here. Type --model and what it "
            f"was loaded from ({error})"
        ) from error
    return EditedClip(clip, edit)


def _tell(done: "Applied", edit: "Edit") -> None:
    from clip_anatomy.loading.typed_texts import shorten

    told = edit.told
    more = f" and {len(told) - 6} more" if len(told) > 6 else ""
    print(f"{edit.model}, edited: {'; '.join(told[:6]) or 'nothing'}{more}")
    failed = f", {len(done.failed):,} not used" if done.failed else ""
    print(f"{done.out}: {done.done:,} images{failed} in {done.seconds:.0f} s")
    print(f"embeddings turned by {done.moved:.1f} degrees on average", end="")
    print("" if done.changed is None else f"; another text comes first for {100 * done.changed:.1f} % of the images")
    most = sorted(done.first.items(), key=lambda one: -max(one[1]))[:SHOWN]
    width = max((len(shorten(text, 60)) for text, _ in most), default=0)
    for at, (text, (before, after)) in enumerate(most):
        said = (f"{100 * count / done.done:5.1f} %" for count in (before, after))
        print(f"  {shorten(text, 60):<{width}}  first for {' → '.join(said)}{' with the edit' if not at else ''}")
    if len(done.first) > SHOWN:
        print(f"  … and {len(done.first) - SHOWN:,} more texts: --json tells all")
