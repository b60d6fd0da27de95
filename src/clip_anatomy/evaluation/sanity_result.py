"""What came of asking whether maps mean anything: figures, limits, verdicts, as a table and as JSON. `sanity` measures them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isnan
from textwrap import fill
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from clip_anatomy.maps.attention_sinks import AttentionSinks
from clip_anatomy.results import Result

__all__ = [
    "LIMITS",
    "Measured",
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
UNTRAINED = (
    "The weights of the {} look untrained, as if they were drawn at random: no map of this model means anything."
)
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
        passed: whether all of the interval is good; False where the figure is not, None in between, for lines that only inform,
            and where nothing could be measured.
        verdict: in words.
        chance: the figure of maps that say nothing; None for lines that only inform.
        error: half the width of the figure's 95 % interval; NaN where it is not known.
    """

    name: str
    varied: str
    figure: float
    limit: float | None
    passed: bool | None
    verdict: str
    chance: float | None = None
    error: float = float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """The figure's 95 % interval."""
        return self.figure - self.error, self.figure + self.error


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
        untrained: towers whose weights look as they were drawn; no question is then answered well.
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
    untrained: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether no question was answered badly, or left open."""
        return not self.untrained and all(check.passed is True for check in self.checks if check.limit is not None)

    def summary(self) -> str:
        """Return the lines for people, at most a hundred characters wide."""
        wide = max(len(check.varied) for check in self.checks) + 2
        subject = f"{counted(self.images, 'picture')} × {counted(len(self.texts), 'text')} ({self.model})"
        lines = [
            f"Sanity of {self.method} on {subject}",
            *(fill(line, WIDE, initial_indent="  ", subsequent_indent="  ") for line in self.announcement),
        ]
        lines += [f"  {'':<{wide}}{'figure':>6}{' ± 95 %':>8}{'chance':>8}{'good':>8}"]
        for check, cells in zip(self.checks, self.rows, strict=True):
            head = f"  {check.varied:<{wide}}{cells[0]:>6}{cells[1]:>8}{cells[2]:>8}{cells[3]:>8}  "
            if len(head) + len(check.verdict) <= WIDE:
                lines.append(head + check.verdict)
            else:
                indent = " " * 6
                lines += [head.rstrip(), fill(check.verdict, WIDE, initial_indent=indent, subsequent_indent=indent)]
        return "\n".join(lines)

    @property
    def announcement(self) -> list[str]:
        """A line that says which tower looks untrained, if one does."""
        return [UNTRAINED.format(" and the ".join(self.untrained))] if self.untrained else []

    @property
    def rows(self) -> list[tuple[str, str, str, str]]:
        """Figure, half of the interval, chance and limit of each check, as page and terminal print them."""
        lines: list[tuple[str, str, str, str]] = []
        for check in self.checks:
            values = (check.figure, check.error, check.chance, check.limit)
            share = check.name == "sinks"
            cells = ["" if x is None or isnan(x) else f"{x:.0%}" if share else f"{x:.2f}" for x in values]
            lines.append((cells[0], cells[1], cells[2], f"< {cells[3]}" if cells[3] else ""))
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON (NaN becomes None)."""
        values = asdict(self)
        for check, one in zip(values["checks"], self.checks, strict=True):
            check["interval"] = None if isnan(one.error) else list(one.interval)
            check["figure"] = None if isnan(one.figure) else one.figure
            del check["error"]
        return {
            **values,
            "announcement": self.announcement,
            "passed": self.passed,
            "limits": {name: limit for name, (limit, _) in LIMITS.items()},
        }


def counted(number: int, noun: str) -> str:
    """Join a number and its noun.

    Example:
        >>> counted(1, "picture"), counted(2, "picture")
        ('1 picture', '2 pictures')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


@dataclass(frozen=True)
class Measured:
    """A mean over pictures and texts, and how sure it is.

    Attributes:
        figure: the mean; NaN where nothing could be measured.
        error: half the width of its 95 % interval.
    """

    figure: float
    error: float = float("nan")

    @staticmethod
    def of(values: Float[Tensor, "unit repeat"], least: float = 0.0) -> "Measured":
        """Average over units that are independent (maps, pictures), each measured several times.

        Args:
            values: NaN where a map was flat.
            least: standard deviation that a unit has at least: a rank correlation over n patches scatters by 1/√(n − 1).
        """
        known = values[~values.isnan().all(1)]
        if not len(known):
            return Measured(float("nan"))
        means = known.nanmean(1) if len(known) > 1 else known[0][~known[0].isnan()]
        spread = float(means.std()) if len(means) > 1 else float("nan")
        each = 0.0 if isnan(spread) else spread / len(means) ** 0.5
        error = 1.96 * max(each, least / len(known) ** 0.5)
        return Measured(float(known.nanmean()), error or float("nan"))


def text_check(measured: Measured, *, per_text: bool, trained: bool = True) -> SanityCheck:
    """Judge whether maps change with the text."""
    varied, limit = "maps of negative texts", LIMITS["text"][0]
    if not per_text:
        verdict = "changes with the text: no, it never looks at the text"
        return SanityCheck("text", varied, measured.figure, limit, False, verdict, 0.0, measured.error)
    return _judged("text", varied, measured, 0.0, "changes with the text", trained=trained)


def weights_check(
    varied: str, measured: Measured, chance: Measured | None = None, *, trained: bool = True
) -> SanityCheck:
    """Judge whether maps change with what was learned. Only a line with a chance level has a limit, the others inform."""
    varied = f"random weights in {varied}"
    if chance is not None:
        level = chance.figure if not isnan(chance.figure) else None
        return _judged("weights", varied, measured, level, "depends on what was learned", trained=trained)
    unchanged = measured.figure >= LIMITS["weights"][0]
    verdict = FLAT if isnan(measured.figure) else "still the map's order" if unchanged else "no longer the map's order"
    return SanityCheck("weights", varied, measured.figure, None, None, verdict, None, measured.error)


def contrast_check(measured: Measured, *, trained: bool = True) -> SanityCheck:
    """Judge whether maps prefer the text to what is not there."""
    about = "prefers the text to what is not there"
    return _judged("contrast", "share on a contrast text", measured, 0.5, about, trained=trained)


def _judged(name: str, varied: str, measured: Measured, chance: float | None, question: str, *, trained: bool) -> SanityCheck:  # fmt: skip
    limit, figure, error = LIMITS[name][0], measured.figure, measured.error
    if isnan(figure):
        return SanityCheck(name, varied, figure, limit, None, FLAT, chance)
    if figure >= limit:
        passed, answer = False, "no"
    elif not trained:
        passed, answer = False, "no, the model looks untrained"
    elif figure + error < limit:
        passed, answer = True, "yes"
    else:
        passed, answer = None, "unclear, take more pictures or texts"
    return SanityCheck(name, varied, figure, limit, passed, f"{question}: {answer}", chance, error)


def sinks_found(images: Sequence[int], part: AttentionSinks) -> list[Sink]:
    """List every sink of some pictures, whose numbers are `images`."""
    return [
        Sink(images[i], row, col, float(part.length[i, row, col]), float(part.attention[i, row, col]))
        for i, row, col in part.mask.nonzero().tolist()
    ]


def sinks_check(sinks: Sequence[Sink], images: int, measured: Measured, chance: float) -> SanityCheck:
    """Judge whether the readout attends to sinks.

    Args:
        sinks: the sinks.
        images: how many pictures were looked at.
        measured: share of the attention to patches that goes to sinks, over pictures.
        chance: the share of the patches that are sinks.
    """
    varied, limit = "attention on sinks and registers", LIMITS["sinks"][0]
    if not sinks:
        return SanityCheck("sinks", varied, 0.0, limit, True, f"none in {counted(images, 'picture')}", 0.0)
    most: dict[tuple[int, int], list[Sink]] = {}
    for sink in sinks:
        most.setdefault((sink.row, sink.col), []).append(sink)
    common = sorted(most.items(), key=lambda item: -len(item[1]))
    where = ", ".join(
        f"row {row} col {col} in {len(group)} (length {_mean(group, 'length'):.1f}×, attention {_mean(group, 'attention'):.0%})"
        for (row, col), group in common[:PLACES]
    )
    more = f" and {len(common) - PLACES} other places" if len(common) > PLACES else ""
    pictures = len({sink.image for sink in sinks})
    return SanityCheck(
        "sinks", varied, measured.figure, limit, measured.figure < limit,
        f"found in {pictures} of {images} pictures: {where}{more}", chance, measured.error,
    )  # fmt: skip


def _mean(group: list[Sink], name: str) -> float:
    return sum(getattr(sink, name) for sink in group) / len(group)
