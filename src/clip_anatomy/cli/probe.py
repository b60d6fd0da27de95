"""`clip-anatomy probe`: what a linear classifier reads off the embedding, and off parts of it."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def probe(
    store: Path,
    *,
    last: str | None = None,
    without: list[str] | None = None,
    atlas: Path | None = None,
    label: str = "label",
    group: str | None = None,
    split: str | None = None,
    method: str | None = None,
    epochs: int = 10,
    seed: int = 0,
    out: Annotated[Path | None, Parameter(alias="-o")] = None,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Train linear probes on the full embedding and on ablated ones, side by side; no image is read.

        clip-anatomy probe STORE --last 1,4
        clip-anatomy probe STORE --without layer=0-7 --label background
        clip-anatomy probe STORE --without role=background

    Args:
        store: a store that `clip-anatomy index` made, with labels.
        last: probe only what the attention of the last layers wrote: numbers of layers, such as 1,4; or none. By default 4.
        without: probe the embedding without these heads: 9.3,10.1 | layer=0-7 | role=background; repeat it for several.
        atlas: atlas.json, or folder of an atlas, that names the heads; by default the one kept in the store, or a quick one.
        label: column of the classes.
        group: column of the groups; by default group, or else the class.
        split: column that says train and test; by default split, or else a fifth of the images is the test.
        method: logistic | sgd (a batch at a time) | ridge (closed form). By default logistic, or sgd for large sets.
        epochs: passes of sgd.
        seed: of the split by ids, of sgd and of the intervals.
        out: write the table to this JSON file.
        as_json: print the table as JSON on stdout.

    Returns:
        Exit code 0.
    """
    from clip_anatomy.atomic_output import as_json as json_text
    from clip_anatomy.errors import BadSpec
    from clip_anatomy.progress import progress
    from clip_anatomy.report.step_progress import stages

    layers = [] if last in (None, "none") else last.split(",")
    if not all(one.strip().isdecimal() for one in layers):
        raise BadSpec(f"--last {last}: numbers of layers were expected. Type --last 1,4 or --last none")
    with progress(f"opening {store}"):
        from clip_anatomy.atomic_output import write_file
        from clip_anatomy.store.store import Store
        from clip_anatomy.studies.probe import probe as run

        opened = Store.open(store)
    with stages() as tell:
        found = run(
            opened, last=None if last is None else [int(one) for one in layers], without=without or (), atlas=atlas, label=label, group=group, split=split,
            method=method, epochs=epochs, seed=seed, progress=tell,
        )  # fmt: skip
    if out is not None:
        write_file(out, json_text(found.to_dict()))
    if as_json:
        print(json_text(found.to_dict()), end="")
        return 0
    print(
        f"linear probes of {label!r} ({len(found.classes)} classes), {found.rows[0].method}: {found.train:,} training images, "
        f"{found.test:,} test images, split: {found.split}"
    )
    print(found.table())
    for one in found.notes:
        print(f"note: {one}")
    return 0
