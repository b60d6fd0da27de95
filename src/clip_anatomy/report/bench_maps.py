"""The table of all map methods: on the demo world, or on photographs with masks."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path

from rich.console import Console
from rich.table import Table

from clip_anatomy.atomic_output import as_json as json_text
from clip_anatomy.data.masked import Masked
from clip_anatomy.data.masked_datasets import open_masked
from clip_anatomy.errors import BadInput
from clip_anatomy.evaluation.known_objects import BATCH, Case, cases_of_masks, cases_of_world
from clip_anatomy.evaluation.map_table import THRESHOLDS, MapTable, map_table
from clip_anatomy.loading.clip import Clip
from clip_anatomy.progress import note
from clip_anatomy.report.bench_protocols import STOPPED, configuration, skipped

__all__ = ["bench_maps", "tell_maps"]

PICTURES = 500  # of the demo world


@dataclass(frozen=True)
class _Source:
    """The pictures, how many batches they come in, what they are, and what could not be used (filled as they are read)."""

    cases: Iterable[Case]
    batches: int
    told: str
    lost: list[tuple[str, str]]


def bench_maps(
    clip: Clip,
    place: Path | None,
    methods: list[str] | None,
    *,
    pictures: int | None,
    prompts: int,
    threshold: str,
    tell: Callable[[str, int, int], None],
) -> tuple[MapTable, dict[str, str], list[tuple[str, str]]]:
    """Measure: the table, what decides it, and what could not be used.

    Raises:
        BadInput: no picture of the folder could be used.
    """
    source = _world(clip, pictures) if place is None else _folder(clip, place, pictures, prompts, tell)
    table = map_table(clip, source.cases, methods, threshold=threshold, total=source.batches, report=tell)
    if not any(row.maps or row.why for row in table.rows):
        why = f" The first, {source.lost[0][0]}: {source.lost[0][1]}" if source.lost else ""
        raise BadInput(f"no picture of {place} could be measured.{why} Type a folder with images and masks")
    config = {
        "data": source.told,
        "pictures": f"{table.pictures:,}",
        "model": clip.name,
        "weights": clip.digest,
        "resolution": "patches of {} × {} pixels, input {} × {}".format(*clip.patch, *clip.preprocess.size),
        "foreground": THRESHOLDS[threshold],
        "mask": "a patch is the object's when at least half of it is",
    }
    return table, config, source.lost


def _world(clip: Clip, pictures: int | None) -> _Source:
    count = PICTURES if pictures is None else pictures
    told = "demo world, unseen pictures of one object, asked by colour and shape"
    return _Source(cases_of_world(clip, count), -(-count // BATCH), told, [])


def _folder(
    clip: Clip, place: Path, pictures: int | None, prompts: int, tell: Callable[[str, int, int], None]
) -> _Source:
    data = open_masked("sample", place)
    assert isinstance(data, Masked)
    lost: list[tuple[str, str]] = []

    def progress(done: int, total: int) -> None:
        tell("embedding texts", done, total)

    cases = cases_of_masks(clip, data, prompts=prompts, limit=pictures, skipped=lost, progress=progress)
    count = len(data) if pictures is None else min(pictures, len(data))
    return _Source(cases, count, f"{data.name}, {prompts} prompts", lost)


def tell_maps(table: MapTable, config: dict[str, str], lost: list[tuple[str, str]], *, as_json: bool) -> int:
    """Print the table; exit code."""
    if as_json:
        rows = [
            {k: (v if not isinstance(v, float) or isfinite(v) else None) for k, v in asdict(row).items()}
            for row in table.rows
        ]
        held = {
            "schema": "clip-anatomy/bench-maps/1",
            "configuration": config,
            "rows": rows,
            "partial": table.partial,
            "skipped": [{"id": one, "why": why} for one, why in lost],
        }
        print(json_text(held), end="")
    else:
        configuration(config)
        print()
        _print(table)
    skipped(tuple(lost))
    if table.partial:
        note("stopped: these figures are PARTIAL, of the pictures measured so far, the same for every method")
    return STOPPED if table.partial else 0


def _print(table: MapTable) -> None:
    view = Table(box=None, pad_edge=False)
    view.add_column("method", style="bold", no_wrap=True)
    for column in ("mIoU", "object IoU", "pixel accuracy", "AP", "pointing", "seconds"):
        view.add_column(column, justify="right")
    for row in table.rows:
        shares = (row.mean_iou, row.foreground_iou, row.pixel_accuracy, row.average_precision, row.pointing)
        view.add_row(row.method, *(f"{100 * v:.1f} %" if isfinite(v) else "–" for v in shares), f"{row.seconds:.2f}")
    Console(highlight=False).print(view)
    for row in table.rows:
        if row.why:
            print(f"{row.method}: {row.why}")
