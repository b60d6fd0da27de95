"""`clip-anatomy repair … --protocol paper`: the published Waterbirds table in one command."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clip_anatomy.studies.waterbirds_table import PaperTable

__all__ = ["paper"]

PROTOCOLS = ("paper",)
DEFAULT_OUT = Path("clip-anatomy-paper")
STORE, RESULT = "store", "paper.json"
STOPPED = 130


def paper(
    source: str,
    protocol: str = "paper",
    *,
    model: str | None = None,
    weights: str | None = None,
    out: Path | None = None,
    as_json: bool = False,
    device: str = "auto",
    batch: int | None = None,
) -> int:
    """Run a published protocol and print its table: before, after, the four groups.

    Args:
        source: a folder with Waterbirds, `waterbirds:FOLDER[:partial]`, or a store made of it.
        protocol: "paper".
        model: one of the three models with a published list; the store's by default.
        weights: a checkpoint file for open_clip:NAME.
        out: folder for `paper.json` and, where pictures are given, the store of what the heads wrote (go on after a stop by
            typing the same again).
        as_json: print the table as JSON on stdout.
        device: auto, cpu, cuda, cuda:1, mps.
        batch: images at once; by default found while working.

    Returns:
        Exit code: 0 done, 130 stopped with Ctrl-C.

    Raises:
        BadSpec: unknown protocol, or a model without a published list.
        BadInput: no copy of Waterbirds, or not a whole one.
    """
    from clip_anatomy.atomic_output import as_json as json_text
    from clip_anatomy.atomic_output import write_file
    from clip_anatomy.data.open_source import open_source
    from clip_anatomy.errors import BadSpec
    from clip_anatomy.loading.load import load
    from clip_anatomy.progress import note, progress, shown
    from clip_anatomy.report.step_progress import stages
    from clip_anatomy.store.index import index, model_of
    from clip_anatomy.store.manifest import NAME
    from clip_anatomy.store.store import Store
    from clip_anatomy.studies.waterbirds_protocol import paper_heads_of, paper_protocol
    from clip_anatomy.studies.waterbirds_table import LATE, PAPER

    if protocol not in PROTOCOLS:
        raise BadSpec(f"protocol {protocol!r} is not known. Type --protocol {' or '.join(PROTOCOLS)}")
    stored = Path(source) if (Path(source) / NAME).is_file() else None
    folder = out if out is not None else DEFAULT_OUT
    place = stored or folder / STORE
    with progress("opening the model"):
        pictures = (
            None if stored else open_source(_test_images(source))
        )  # a wrong path is said before minutes of loading
        named = model or model_of(place)
        if named is None:
            raise BadSpec(
                f"the protocol is of three models. Type --model with one of: {', '.join(one.spec for one in PAPER.values())}"
            )
        clip = load(named, weights=weights, device=device)
        paper_heads_of(clip)  # refused before anything is indexed
    if pictures is not None:
        try:
            with shown(source) as tell:
                done = index(
                    clip, pictures, place, layers=f"last:{LATE}", convention="official", batch=batch, progress=tell
                )
        except KeyboardInterrupt as stop:
            note(f"clip-anatomy: {stop or 'stopped; what was committed is kept'}")
            return STOPPED
        for name, message in done.errors:
            note(f"not used: {name}: {message}")
    with stages() as tell:
        found = paper_protocol(Store.open(place, clip), clip, progress=tell)
    if out is not None or stored is None:
        write_file(folder / RESULT, json_text(found.to_dict()))
    if as_json:
        print(json_text(found.to_dict()), end="")
    else:
        _show(found)
        if out is not None or stored is None:
            print(f"{folder / RESULT}: the same as JSON")
    return 0


def _test_images(source: str) -> str:
    """The spec of the test images only: the protocol looks at no others."""
    spec = source if source.startswith("waterbirds:") else f"waterbirds:{source}"
    return spec if ":test" in spec[len("waterbirds:") :] else f"{spec}:test"


def _show(found: "PaperTable") -> None:
    before, after = found.before, found.after
    print(f"Waterbirds, zero-shot, percent right · {found.model} · heads published for {found.published.spec}")
    print(found.table())
    print(
        f"worst group {100 * before.worst:.1f} → {100 * after.worst:.1f}, average {100 * before.average:.1f} → "
        f"{100 * after.average:.1f} (worst group as others report it for\n"
        f"{found.published.spec}: {found.published.told[0]} → {found.published.told[1]})"
    )
    for one in found.notes:
        print(f"note: {one}")
