"""`clip-anatomy probe`: what a linear classifier reads off the embedding, and off parts of it."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from clip_anatomy.cli.options import AsJson, AtlasFile, StoreFolder


def probe(
    store: StoreFolder,
    *,
    last: str | None = None,
    without: list[str] | None = None,
    atlas: AtlasFile = None,
    label: str = "label",
    group: Annotated[str | None, Parameter(alias="-g")] = None,
    split: str | None = None,
    method: str | None = None,
    epochs: int = 10,
    seed: int = 0,
    out: Annotated[Path | None, Parameter(alias="-o")] = None,
    as_json: AsJson = False,
) -> int:
    """Train linear probes on the full embedding and on ablated ones, side by side; no image is read.

    Prints a table; --out FILE writes it as JSON too.

        clip-anatomy probe STORE --last 1,4
        clip-anatomy probe STORE --without layer=0-7 --label background
        clip-anatomy probe STORE --without role=background

    Args:
        last: probe only what the attention of the last layers wrote: numbers of layers, such as 1,4; or none. By default 4.
        without: probe the embedding without these heads: 9.3,10.1 | layer=0-7 | role=background; repeat it for several.
        label: column of the classes.
        group: column of the groups; by default group, or else the class.
        split: column that says train and test; by default split, or else a fifth of the images is the test.
        method: logistic | sgd (a batch at a time) | ridge (closed form). By default logistic, or sgd for large sets.
        epochs: passes of sgd.
        seed: of the split by ids, of sgd and of the intervals.
        out: file for the table as JSON.

    Returns:
        Exit code 0.
    """
    from clip_anatomy.atomic_output import as_json as json_text
    from clip_anatomy.atomic_output import write_file
    from clip_anatomy.cli.options import print_result
    from clip_anatomy.progress import shown

    with shown(f"opening {store}") as progress:
        from clip_anatomy.studies.probe import probe as run

        result = run(
            store, last=last, without=without, atlas=atlas, label=label, group=group, split=split, method=method, epochs=epochs,
            seed=seed, progress=progress,
        )  # fmt: skip
    if out is not None:
        write_file(out, json_text(result.to_dict()))
    print_result(result, as_json=as_json)
    return 0
