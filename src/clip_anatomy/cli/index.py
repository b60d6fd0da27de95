"""`clip-anatomy index` and `clip-anatomy verify`: keep the parts of many images, and check that they are still whole."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

STOPPED = 130


def index(
    source: str,
    store: Path,
    *,
    model: Annotated[str | None, Parameter(alias="-m")] = None,
    weights: str | None = None,
    layers: str | None = None,
    keep: str | None = None,
    convention: str | None = None,
    labels: Path | None = None,
    prune: bool = False,
    batch: int | None = None,
    workers: int | None = None,
    strict: bool = False,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
    device: str = "auto",
) -> int:
    """Walk a collection once and keep what every head wrote: the basis of atlas, search and repair.

    Type the same command again to go on after a stop, to add new images, or to try again those that could not be read.
    Nothing is done twice, and a kill costs at most half a minute of work.

    Args:
        source: a folder (class folders give labels) | a .txt list | a table .csv, .json or .jsonl | tar files | hf-dataset:NAME[:SPLIT] | world:COUNT[:SPLIT] | imagenet:, waterbirds:, cub:, cifar10: or cifar100: and FOLDER[:SPLIT][:partial].
        store: folder of the store; made if it is not there.
        model: demo | open_clip:NAME/TAG | open_clip:NAME with --weights | hf:ORG/NAME | a folder or file with a saved model. By default the model of the store that is there, else demo.
        weights: a checkpoint file for open_clip:NAME.
        layers: all | last:4 | 8-11 | 0,3.
        keep: heads | heads,mlps. Embeddings are always kept.
        convention: own | even: how LayerNorm's mean and the biases are shared.
        labels: a table of labels, groups and captions, by path or file name.
        prune: take out images that are no longer in the source.
        batch: images at once; by default found while working.
        workers: threads that decode.
        strict: exit with 1 if any image could not be used (the others are done all the same).
        as_json: print the summary as JSON on stdout.
        device: auto, cpu, cuda, cuda:1, mps.

    Returns:
        Exit code: 0 done, 1 an image could not be used under --strict, 130 stopped with Ctrl-C (what was finished is kept).
    """
    from dataclasses import asdict

    from clip_anatomy.atomic_output import as_json as json_text
    from clip_anatomy.progress import note, progress
    from clip_anatomy.report.index_progress import walking

    with progress("opening the model"):
        from clip_anatomy.data.open_source import open_source
        from clip_anatomy.loading.load import load
        from clip_anatomy.store.index import index as walk
        from clip_anatomy.store.index import model_of

        opened = open_source(source, labels)  # a wrong path is said before minutes of loading
        clip = load(model or model_of(store) or "demo", weights=weights, device=device)
    try:
        with walking(source) as report:
            done = walk(
                clip, opened, store, layers=layers, keep=keep, convention=convention, prune=prune, batch=batch,
                workers=workers, report=report,
            )  # fmt: skip
    except KeyboardInterrupt as stop:
        note(f"clip-anatomy: {stop or 'stopped; what was committed is kept'}")
        return STOPPED
    for name, message in done.errors:
        note(f"not used: {name}: {message}")
    if done.failed > len(done.errors):
        note(f"... and {done.failed - len(done.errors):,} more; all of them: Store.open(...).rows(status='error')")
    if as_json:
        print(json_text({"schema": "clip-anatomy/index/1", **asdict(done)}), end="")
    else:
        parts = [
            f"{done.done:,} images added",
            f"{done.known:,} known",
            f"{done.failed:,} not used",
            f"{done.gone:,} taken out",
        ]
        said = ", ".join(part for part in parts if part[0] != "0" or part.endswith("added"))
        print(f"{done.store}: {done.images:,} images ({said}) in {done.seconds:.0f} s")
    return 1 if strict and done.failed else 0


def verify(store: Path, *, as_json: Annotated[bool, Parameter(name="--json")] = False) -> int:
    """Read every file of a store and compare it with the checksums taken when it was written.

    Finds flipped bytes, missing files, rows without data and data without rows.

    Args:
        store: folder of the store.
        as_json: print the findings as JSON on stdout.

    Returns:
        Exit code: 0 all is well, 1 something is wrong.
    """
    from dataclasses import asdict

    from clip_anatomy.atomic_output import as_json as json_text
    from clip_anatomy.progress import note, progress

    with progress(f"reading {store}") as step:
        from clip_anatomy.store.verify import verify as read

        found = read(store, step)
    if as_json:
        print(json_text({"schema": "clip-anatomy/verify/1", "holds": found.holds, **asdict(found)}), end="")
    else:
        for problem in found.problems:
            print(f"WRONG  {problem}")
        for remark in found.notes:
            print(f"note   {remark}")
        print(
            f"{found.store}: {found.images:,} images in {found.files:,} files of {found.bytes / 1e6:,.1f} MB: "
            f"{'all is well' if found.holds else f'{len(found.problems)} things are wrong'}"
        )
    if not found.holds:
        note(
            "clip-anatomy: put a copy of the named files in their place; without one, delete the store and index again: "
            f"clip-anatomy index SOURCE {store}"
        )
    return 0 if found.holds else 1
