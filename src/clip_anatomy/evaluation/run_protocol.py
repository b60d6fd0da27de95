"""Run a protocol on a model.

run(clip, "voc20", path) ─▶ Outcome: figures, per class, configuration, what was skipped
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from time import perf_counter
from typing import Any

from clip_anatomy.data.masked import spread
from clip_anatomy.data.masked_datasets import open_masked
from clip_anatomy.errors import BadInput, BadSpec
from clip_anatomy.evaluation.protocols import PROTOCOLS, LabelsSettings
from clip_anatomy.evaluation.run_configuration import configuration_of
from clip_anatomy.evaluation.task_settings import chosen_settings, class_words, task_of
from clip_anatomy.loading.clip import Clip
from clip_anatomy.maps.registry import methods_of

__all__ = ["Outcome", "methods_for", "run"]

Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Outcome:
    """What a protocol gave.

    Attributes:
        protocol: its name.
        figures: headline figures, 0..1.
        per_class: a figure per class, NaN where there was nothing to measure.
        configuration: everything that decides the figures.
        pictures: how many were measured.
        skipped: id and reason of each that could not be.
        seconds: wall time of the pictures, without texts.
        partial: whether the run was stopped before its end.
    """

    protocol: str
    figures: dict[str, float]
    per_class: dict[str, float] = field(repr=False)
    configuration: dict[str, Any] = field(repr=False)
    pictures: int
    skipped: tuple[tuple[str, str], ...]
    seconds: float
    partial: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; NaN becomes None."""
        found = asdict(self)
        for key in ("figures", "per_class"):
            found[key] = {name: value if isfinite(value) else None for name, value in found[key].items()}
        found["skipped"] = [{"id": name, "why": why} for name, why in self.skipped]
        return {"schema": "clip-anatomy/bench/1", **found}


def run(
    clip: Clip,
    protocol: str,
    path: str | Path,
    *,
    like: str | None = None,
    names: str | Path | None = None,
    limit: int | None = None,
    report: Report | None = None,
    **settings: Any,
) -> Outcome:
    """Run a protocol.

    A picture that cannot be measured (unreadable, a mask of another size or with unknown ids, missing) is named in the outcome
    and the others are done. Ctrl-C ends the run and gives what was measured so far, marked as partial.

    Args:
        clip: an opened model.
        protocol: a name of PROTOCOLS.
        path: where the data set lies.
        like: a paper of PUBLISHED whose settings of this protocol are taken.
        names: a file with the texts of each class, see `class_words`; by default the data set's own names.
        limit: take this many pictures only, evenly spread over the data set; the outcome says so.
        report: called with what is being done, how much of it is done, how much there is.
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
    words = class_words(data, chosen, names)
    if limit is not None and limit < 1:
        raise BadSpec(f"limit={limit}: at least one picture. Type: limit=100")
    entries = spread(data.entries, limit)
    tell = report or (lambda what, done, total: None)
    tell(f"embedding the texts of {data.name}", 0, 1)
    task = task_of(clip, data, words, chosen, lambda done, total: tell("embedding texts", done, total))
    skipped: list[tuple[str, str]] = []
    partial = False
    done = 0
    start = perf_counter()
    try:
        for done, entry in enumerate(entries):
            tell(f"measuring {data.name}", done, len(entries))
            try:
                task.see(entry)
            except BadSpec:
                raise
            except BadInput as error:
                skipped.append((entry.id, str(error)))
        done = len(entries)
    except KeyboardInterrupt:
        if done == len(skipped):  # nothing to tell
            raise
        partial = True
    seconds = perf_counter() - start
    taken = {"protocol": protocol, "pictures": f"{len(entries)} of {len(data)}", "class names": words.told}
    if len(skipped) == done:
        name, why = skipped[0]
        raise BadInput(f"none of the {done} pictures of {data.name} could be measured. The first, {name}: {why}")
    return Outcome(
        protocol=protocol,
        figures=task.figures(),
        per_class=task.per_class(),
        configuration=configuration_of(clip, protocol, chosen, data, taken=taken, like=like),
        pictures=done - len(skipped),
        skipped=tuple(skipped),
        seconds=seconds,
        partial=partial,
    )


def methods_for(clip: Clip, protocol: str) -> list[str]:
    """Every method that a protocol can run on this model without further options.

    Args:
        clip: an opened model.
        protocol: a name of PROTOCOLS.

    Example:
        >>> import clip_anatomy as ca
        >>> methods_for(ca.load("demo"), "nus-wide")[:3]
        ['embedding', 'decomposition', 'surgery']
    """
    own = ["embedding"] if isinstance(PROTOCOLS[protocol].settings, LabelsSettings) else []
    return [*own, *(name for name, method in methods_of(clip).items() if not method.needs)]
