"""What came of asking whether maps mean anything: figures, limits, verdicts, as a table and as JSON. `sanity` measures them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isnan
from textwrap import fill
from typing import Any, ClassVar

from clip_anatomy.maps.attention_sinks import AttentionSinks
from clip_anatomy.results import Result

__all__ = [
    "LIMITS",
    "Sanity",
    "SanityCheck",
    "Sink",
    "contrast_check",
    "sinks_check",
    "sinks_found",
    "text_check",
    "weights_check",
]

LIMITS = {
    "text": (0.5, "a map that keeps half of its order or more whatever the text says little about the text"),
    "weights": (0.5, "a map that random weights leave half in order shows the picture's edges, not what was learned"),
    "contrast": (
        0.4,
        "0.5 is guessing; wrong texts of the demo world get 0.45 to 0.57, right ones 0.12 (decomposition) to 0.32",
    ),
    "sinks": (
        0.1,
        "a tenth of the attention on places that show nothing is seen in the map; replace_sinks=True takes it out",
    ),
}
"""Question → figure below which the answer is good, and why there."""
WIDE = 100
FLAT = "every map is flat: nothing to compare"
PLACES = 3  # of sinks, that the table names


@dataclass(frozen=True)
class SanityCheck:
    """One line of the table.

    Attributes:
        name: "text", "weights", "contrast" or "sinks".
        varied: what was varied.
        figure: see the module; NaN where every map was flat.
        limit: below it the answer is good; None for lines that only inform.
        passed: the answer; None for lines that only inform, or where nothing could be measured.
        verdict: in words.
    """

    name: str
    varied: str
    figure: float
    limit: float | None
    passed: bool | None
    verdict: str


@dataclass(frozen=True)
class Sink:
    """A patch that the readout looks at, or whose token is outlying, whatever it shows.

    Attributes:
        image: number of the picture.
        row: of the patch.
        col: of the patch.
        length: of its token into the last layer, times the median of the picture.
        attention: its share of the attention that goes to patches.
    """

    image: int
    row: int
    col: int
    length: float
    attention: float


@dataclass(frozen=True, repr=False)
class Sanity(Result):
    """What came of the questions.

    Attributes:
        method: of `heatmap`.
        model: its name.
        texts: whose maps were checked.
        negative_texts: the texts it was compared with.
        images: how many pictures.
        patches: of the smallest picture.
        checks: one line each.
        sinks: every one that was found.
    """

    presenter: ClassVar[str] = "figures_folder"
    method: str
    model: str
    texts: tuple[str, ...]
    negative_texts: tuple[str, ...]
    images: int
    patches: int
    checks: tuple[SanityCheck, ...]
    sinks: tuple[Sink, ...]

    @property
    def passed(self) -> bool:
        """Whether no question was answered badly."""
        return all(check.passed is not False for check in self.checks)

    def summary(self) -> str:
        """Return the lines for people, at most a hundred characters wide."""
        wide = max(len(check.varied) for check in self.checks) + 2
        subject = f"{counted(self.images, 'picture')} × {counted(len(self.texts), 'text')} ({self.model})"
        lines = [f"Sanity of {self.method} on {subject}", f"  {'':<{wide}}{'figure':>6}  {'good':>6}"]
        for check in self.checks:
            figure, limit = (
                f"{x:.2f}" if check.name != "sinks" else f"{x:.0%}" for x in (check.figure, check.limit or 0)
            )
            good = "" if check.limit is None else f"< {limit}"
            head = f"  {check.varied:<{wide}}{figure:>6}  {good:>6}  "
            lines += fill(check.verdict, WIDE, initial_indent=head, subsequent_indent=" " * len(head)).splitlines()
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON (NaN becomes None)."""
        found = asdict(self)
        for check in found["checks"]:
            check["figure"] = None if isnan(check["figure"]) else check["figure"]
        return {**found, "passed": self.passed, "limits": {name: limit for name, (limit, _) in LIMITS.items()}}


def counted(number: int, noun: str) -> str:
    """Join a number and its noun.

    Example:
        >>> counted(1, "picture"), counted(2, "picture")
        ('1 picture', '2 pictures')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def text_check(figure: float, *, per_text: bool) -> SanityCheck:
    """Judge whether maps change with the text."""
    varied, limit = "maps of negative texts", LIMITS["text"][0]
    if not per_text:
        return SanityCheck(
            "text", varied, figure, limit, False, "changes with the text: no, it never looks at the text"
        )
    return _judged("text", varied, figure, "changes with the text")


def weights_check(varied: str, figure: float, *, judged: bool) -> SanityCheck:
    """Judge whether maps change with what was learned. Only a line with `judged` has a limit, the others inform."""
    varied = f"random weights in {varied}"
    if judged:
        return _judged("weights", varied, figure, "depends on what was learned")
    kept = figure >= LIMITS["weights"][0]
    verdict = FLAT if isnan(figure) else "still the map's order" if kept else "no longer the map's order"
    return SanityCheck("weights", varied, figure, None, None, verdict)


def contrast_check(figure: float) -> SanityCheck:
    """Judge whether maps prefer the text to what is not there."""
    found = "prefers the text to what is not there"
    return _judged("contrast", "share on a contrast text", figure, found, " (0.50 is guessing)")


def _judged(name: str, varied: str, figure: float, question: str, further: str = "") -> SanityCheck:
    limit = LIMITS[name][0]
    if isnan(figure):
        return SanityCheck(name, varied, figure, limit, None, FLAT)
    good = figure < limit
    return SanityCheck(name, varied, figure, limit, good, f"{question}: {'yes' if good else 'no'}{further}")


def sinks_found(images: Sequence[int], part: AttentionSinks) -> list[Sink]:
    """List every sink of some pictures, whose numbers are `images`."""
    return [
        Sink(images[i], row, col, float(part.length[i, row, col]), float(part.attention[i, row, col]))
        for i, row, col in part.mask.nonzero().tolist()
    ]


def sinks_check(found: Sequence[Sink], images: int, share: float) -> SanityCheck:
    """Judge whether the readout attends to sinks. `share`: of the attention to patches that goes to sinks, mean over pictures."""
    varied, limit = "attention on sinks and registers", LIMITS["sinks"][0]
    if not found:
        return SanityCheck(
            "sinks", varied, 0.0, limit, True, f"none in {images} pictures".replace(" 1 pictures", " 1 picture")
        )
    most: dict[tuple[int, int], list[Sink]] = {}
    for sink in found:
        most.setdefault((sink.row, sink.col), []).append(sink)
    common = sorted(most.items(), key=lambda item: -len(item[1]))
    where = ", ".join(
        f"row {row} col {col} in {len(group)} (length {_mean(group, 'length'):.1f}×, attention {_mean(group, 'attention'):.0%})"
        for (row, col), group in common[:PLACES]
    )
    more = f" and {len(common) - PLACES} other places" if len(common) > PLACES else ""
    pictures = len({sink.image for sink in found})
    return SanityCheck(
        "sinks", varied, share, limit, share < limit, f"found in {pictures} of {images} pictures: {where}{more}"
    )


def _mean(group: list[Sink], name: str) -> float:
    return sum(getattr(sink, name) for sink in group) / len(group)
