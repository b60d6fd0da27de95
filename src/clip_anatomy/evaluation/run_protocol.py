"""Run a protocol on a model.

run_protocol(clip, "voc20", path) ─▶ ProtocolResult: figures, per class, configuration, what was skipped
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from math import isnan
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar

from clip_anatomy.data.masked import MaskedDataset, MaskedPicture, spread
from clip_anatomy.data.masked_datasets import open_masked
from clip_anatomy.engine.engine import Engine, works_here
from clip_anatomy.errors import BadInput, BadSpec
from clip_anatomy.evaluation.calibrate import calibrated, held_out
from clip_anatomy.evaluation.class_lists import OFFICIAL
from clip_anatomy.evaluation.measure_on_workers import measure_on_workers
from clip_anatomy.evaluation.metrics import RESAMPLES
from clip_anatomy.evaluation.protocol_settings import chosen_settings, class_texts, configuration_of, task_of
from clip_anatomy.evaluation.protocols import PROTOCOLS, LabelsSettings, ReferringSettings, SemanticSettings
from clip_anatomy.evaluation.semantic_task import NamesScore, SemanticTask
from clip_anatomy.evaluation.text_tables import (
    LABEL,
    configuration_lines,
    finite,
    percent,
    skipped_lines,
    table_lines,
)
from clip_anatomy.loading.clip import Clip
from clip_anatomy.maps.refer import METHODS
from clip_anatomy.maps.registry import methods_of
from clip_anatomy.progress import Progress, silent
from clip_anatomy.results import Result

__all__ = ["MethodComparison", "ProtocolResult", "methods_for", "run_protocol"]

DECIDES = ("logit_scale", "threshold")
INTERVAL = f"95 % of {RESAMPLES:,} resamples"
MISSING = "a paper's renamed list, to be given as names"


@dataclass(frozen=True, repr=False)
class ProtocolResult(Result):
    """What a protocol gave for one method.

    Attributes:
        protocol: its name.
        figures: headline figures, 0..1.
        per_class: a figure per class, NaN where there was nothing to measure.
        configuration: everything that decides the figures.
        pictures: how many were measured.
        skipped: id and reason of each that could not be.
        seconds: wall time of the pictures, without texts.
        partial: whether the run was stopped before its end.
        names: of protocols of mIoU, the figure under every naming of the classes, with its interval.
    """

    presenter: ClassVar[str] = "figures_folder"
    protocol: str
    figures: dict[str, float]
    per_class: dict[str, float] = field(repr=False)
    configuration: dict[str, Any] = field(repr=False)
    pictures: int
    skipped: tuple[tuple[str, str], ...]
    seconds: float
    partial: bool
    names: tuple[NamesScore, ...] = ()

    @property
    def as_shares(self) -> bool:
        """Whether figures are told as shares (saliency measures, as their papers do) and not in per cent."""
        return "MAE" in self.figures

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; NaN becomes None."""
        values = {**asdict(self), "figures": finite(self.figures), "per_class": finite(self.per_class)}
        values["skipped"] = [{"id": name, "why": why} for name, why in self.skipped]
        values["names"] = [finite(asdict(one)) for one in self.names]
        return {"schema": "clip-anatomy/bench/1", **values}

    def summary(self, *, classes: bool = False) -> str:
        """Return the configuration and the figures; those of each class where `classes`."""
        lines = [*configuration_lines(self.configuration), ""]
        if classes:
            each = ((name, "–" if isnan(v) else f"{100 * v:6.2f} %") for name, v in self.per_class.items())
            lines += [*(f"  {name:<{LABEL}}{value}" for name, value in each), ""]
        for name, value in self.figures.items():
            lines.append(f"{name:<{LABEL}}{value:8.3f}" if self.as_shares else f"{name:<{LABEL}}{100 * value:8.2f} %")
        lines += [*self._names_lines(), f"{'pictures measured':<{LABEL}}{self.pictures:8,}"]
        if self.skipped:
            lines.append(f"{'pictures skipped':<{LABEL}}{len(self.skipped):8,}")
        return "\n".join([*lines, f"{'seconds':<{LABEL}}{self.seconds:8.1f}"])

    def _names_lines(self) -> list[str]:
        """Return mIoU under every naming, what decides it beside the names, and which naming is missing."""
        if not self.names:
            return []
        rows = [
            [one.names, percent(one.mean_iou), f"{percent(one.low)} to {percent(one.high)}", percent(one.lost, 0)]
            for one in self.names
        ]
        if not any(one.names == OFFICIAL for one in self.names):
            rows.insert(0, [OFFICIAL, "–", f"({MISSING})", ""])
        chosen = ", ".join(f"{name.replace('_', ' ')} {self.configuration[name]}" for name in DECIDES)
        return [
            "",
            *table_lines(["names", "mIoU", "interval", "at 0"], rows),
            f"({chosen}; interval: {INTERVAL}; at 0: there, never found)",
            "",
        ]

    def notes(self) -> list[str]:
        """Return what a reader must know: what was skipped, and whether the run was stopped."""
        stopped = ["stopped: these figures are PARTIAL, of the pictures measured so far"] if self.partial else []
        return skipped_lines(self.skipped) + stopped


@dataclass(frozen=True, repr=False)
class MethodComparison(Result):
    """Several methods under one protocol.

    Attributes:
        outcomes: one per method; only the last can be partial.
    """

    presenter: ClassVar[str] = "figures_folder"
    outcomes: tuple[ProtocolResult, ...]

    @property
    def partial(self) -> bool:
        """Whether the run was stopped before its end."""
        return self.outcomes[-1].partial

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        last = self.outcomes[-1]
        rows = [one.to_dict() for one in self.outcomes]
        return {"schema": "clip-anatomy/bench-methods/1", "protocol": last.protocol, "outcomes": rows}

    def summary(self) -> str:
        """Return what the methods share once, then a row each."""
        last = self.outcomes[-1]
        shared = {
            k: v
            for k, v in last.configuration.items()
            if k not in ("method", "method options") and all(one.configuration.get(k) == v for one in self.outcomes)
        }
        apart = [name for name in DECIDES if name in last.configuration and name not in shared]  # calibrated one by one
        rows: list[list[str]] = []
        for one in self.outcomes:
            figures = [f"{v:.3f}" if one.as_shares else percent(v) for v in one.figures.values()]
            chosen = [str(one.configuration[name]) for name in apart]
            mark = " (partial)" if one.partial else ""
            rows.append(
                [one.configuration["method"] + mark, *figures, *chosen, f"{one.pictures:,}", f"{one.seconds:.1f}"]
            )
        head = ["method", *last.figures, *(name.replace("_", " ") for name in apart), "pictures", "seconds"]
        return "\n".join([*configuration_lines(shared), *table_lines(head, rows), *self._names_lines()])

    def _names_lines(self) -> list[str]:
        """Return a row for each method, its mIoU and interval under every naming: three namings a table, or lines were too long."""
        if not self.outcomes[-1].names:
            return []
        labels = [one.names for one in self.outcomes[-1].names]
        labels = labels if OFFICIAL in labels else [OFFICIAL, *labels]
        lines: list[str] = []
        for first in range(0, len(labels), 3):
            some, rows = labels[first : first + 3], list[list[str]]()
            for outcome in self.outcomes:
                by = {one.names: one for one in outcome.names}
                cells = [_with_interval(by[label]) if label in by else "–" for label in some]
                rows.append([outcome.configuration["method"], *cells])
            lines += ["", *table_lines(["mIoU in %", *some], rows)]
        missing = "" if OFFICIAL in [one.names for one in self.outcomes[-1].names] else f"{OFFICIAL}: {MISSING}; "
        return [*lines, f"({missing}in brackets: {INTERVAL})"]

    def notes(self) -> list[str]:
        """Return what a reader must know: what was skipped, and whether the run was stopped."""
        last = self.outcomes[-1]
        stopped = ["stopped: the last method is PARTIAL, of the pictures measured so far"] if last.partial else []
        return skipped_lines(last.skipped) + stopped


def _with_interval(one: NamesScore) -> str:
    return f"{percent(one.mean_iou)} ({percent(one.low)} to {percent(one.high)})".replace(" %", "")


def run_protocol(
    clip: Clip,
    protocol: str,
    path: str | Path,
    *,
    like: str | None = None,
    names: str | Path | None = None,
    limit: int | None = None,
    calibrate: int | None = None,
    engine: Engine | str = "local",
    progress: Progress | None = None,
    **settings: Any,
) -> ProtocolResult:
    """Measure a model by a protocol.

    A picture that cannot be measured (unreadable, a mask of another size or with unknown ids, missing) is named in the outcome
    and the others are done. Ctrl-C ends the run and gives what was measured so far, marked as partial.

    Args:
        clip: an opened model.
        protocol: a name of PROTOCOLS.
        path: where the data set lies.
        like: a paper of PAPERS whose settings of this protocol are taken.
        names: a file with the texts of each class, see `class_texts`; by default the data set's own names.
        limit: take this many pictures only, evenly spread over the data set; the outcome says so.
        calibrate: choose logit scale and threshold on so many pictures, which are held out; the outcome says so.
        engine: what measures the pictures.
        progress: told the texts that are embedded and the pictures that are measured.
        **settings: instead of the protocol's own and the paper's (method="sclip", stride=224…).

    Returns:
        The outcome.

    Raises:
        BadSpec: unknown protocol, setting, method or paper.
        BadInput: the data set is not there, or none of its pictures could be measured.
        MissingExtra: a library for its format or its metric is not installed.
    """
    if protocol not in PROTOCOLS:
        raise BadSpec(f"the protocol {protocol!r} is not known. Type one of: {', '.join(PROTOCOLS)}")
    chosen = chosen_settings(clip, protocol, settings, like=like, names=names)
    data = open_masked(PROTOCOLS[protocol].dataset, path)
    texts = class_texts(data, chosen, names)
    if limit is not None and limit < 1:
        raise BadSpec(f"limit={limit}: at least one picture. Type: limit=100")
    held: tuple[MaskedPicture, ...] = ()
    measured = data.entries
    if calibrate is not None:
        if not (isinstance(chosen, SemanticSettings) and isinstance(data, MaskedDataset)):
            raise BadSpec(f"{protocol} has no threshold to choose. Leave calibrate out")
        held, measured = held_out(data.entries, calibrate)
    entries = spread(measured, limit)
    tell = progress or silent
    tell(f"embedding the texts of {data.name}", 0, 1)
    plain = None if names is None else class_texts(data, PROTOCOLS[protocol].settings)
    task = task_of(clip, data, texts, chosen, progress=progress, plain=plain)
    known = {"protocol": protocol, "pictures": f"{len(entries)} of {len(data)}", "class names": texts.source}
    if held and isinstance(task, SemanticTask):
        task, known["calibrated"] = calibrated(task, held, progress)
        chosen = task.settings
    start = perf_counter()
    if works_here(engine):
        done, skipped = _measure(task, entries, data.name, tell)
    else:
        what = f"measuring {data.name}"
        done, skipped = measure_on_workers(engine, clip, task, entries, lambda so_far: tell(what, so_far, len(entries)))
    seconds = perf_counter() - start
    if len(skipped) == done:
        name, why = skipped[0]
        raise BadInput(f"none of the {done} pictures of {data.name} could be measured. The first, {name}: {why}")
    return ProtocolResult(
        protocol=protocol,
        figures=task.figures(),
        per_class=task.per_class(),
        configuration=configuration_of(clip, protocol, chosen, data, known=known, like=like),
        pictures=done - len(skipped),
        skipped=tuple(skipped),
        seconds=seconds,
        partial=done < len(entries),
        names=task.names() if isinstance(task, SemanticTask) else (),
    )


def _measure(task: Any, entries: Sequence[Any], name: str, tell: Progress) -> tuple[int, list[tuple[str, str]]]:
    """Measure pictures until the last, or until Ctrl-C.

    Returns:
        How many were tried, and id and error of those that could not be measured.
    """
    skipped: list[tuple[str, str]] = []
    done = 0
    try:
        for done, entry in enumerate(entries):
            tell(f"measuring {name}", done, len(entries))
            try:
                task.measure(entry)
            except BadSpec:
                raise
            except BadInput as error:
                skipped.append((entry.id, str(error)))
    except KeyboardInterrupt:
        if done == len(skipped):  # nothing to tell
            raise
        return done, skipped
    return len(entries), skipped


def methods_for(clip: Clip, protocol: str) -> list[str]:
    """Return every method that a protocol can run on this model without further options.

    Args:
        clip: an opened model.
        protocol: a name of PROTOCOLS.

    Example:
        >>> import clip_anatomy as ca
        >>> methods_for(ca.load("demo"), "nus-wide")[:3]
        ['embedding', 'decomposition', 'surgery']
    """
    if isinstance(PROTOCOLS[protocol].settings, ReferringSettings):
        return [*METHODS]
    own = ["embedding"] if isinstance(PROTOCOLS[protocol].settings, LabelsSettings) else []
    return [*own, *(name for name, method in methods_of(clip).items() if not method.needs)]
