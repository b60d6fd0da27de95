"""`bench speed`: what each step costs on a model, beside the plain `encode_image` of its own library on the same pixels."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any, ClassVar

import torch
from torch import Tensor

from clip_anatomy.edits.replace_parts import replace_parts
from clip_anatomy.errors import BadSpec, MissingExtra, UnsupportedModel
from clip_anatomy.evaluation.text_tables import configuration_lines, finite, table_lines
from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.live_models import read_host
from clip_anatomy.maps.heatmap import heatmap
from clip_anatomy.naming.textspan import textspan
from clip_anatomy.progress import Progress, silent
from clip_anatomy.results import Result
from clip_anatomy.split.basis import HeadBasis, basis_of, coordinates_of
from clip_anatomy.split.moments import Moments
from clip_anatomy.split.parts import decompose

__all__ = ["STEPS", "Speed", "SpeedTable", "seconds_of", "speed"]

PICTURES, TEXTS = 8, 10
LEAST_ROUNDS, MOST_ROUNDS, SECONDS = 3, 11, 30.0
POOL, PICKS = 200, 10  # of TextSpan
FOUND = 10  # of a search


@dataclass(frozen=True)
class Speed:
    """One row of the table.

    Attributes:
        step: a name of STEPS.
        ratio: the median over rounds of its seconds to those of plain `encode_image` in the same round.
        low: the first quartile of these ratios.
        high: the third.
        least: the smallest of them: other work on the machine only ever adds.
        seconds: the median.
        why: why there are no figures, where a step has no meaning on the model or its library is missing.
    """

    step: str
    ratio: float
    low: float
    high: float
    least: float
    seconds: float
    why: str = ""


@dataclass(frozen=True, repr=False)
class SpeedTable(Result):
    """What every step costs beside plain `encode_image`.

    Attributes:
        rows: one per step.
        plain: median seconds of plain `encode_image`.
        pictures: in a batch.
        rounds: how often everything took its turn.
        partial: whether it was stopped before the last round.
        configuration: what decides the figures.
    """

    presenter: ClassVar[str] = "figures_folder"
    rows: tuple[Speed, ...]
    plain: float
    pictures: int
    rounds: int
    partial: bool = False
    configuration: dict[str, str] = field(default_factory=dict[str, str])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; NaN becomes None."""
        rows = [finite(asdict(row)) for row in self.rows]
        given = {"configuration": self.configuration, "plain_seconds": self.plain, "pictures": self.pictures}
        return {"schema": "clip-anatomy/bench-speed/1", **given, "rounds": self.rounds, "rows": rows, "partial": self.partial}  # fmt: skip

    def summary(self) -> str:
        """Return the configuration and the table."""
        rows = [["encode_image", "1", "", "", f"{1000 * self.plain:.1f}", "plain, of the model's own library"]]
        for row in self.rows:
            measured = [f"{row.ratio:.2f}", f"{row.low:.2f}", f"{row.high:.2f}", f"{1000 * row.seconds:.1f}"]
            rows.append([row.step, *(["–"] * 4 if row.why else measured), row.why or STEPS[row.step][0]])
        table = table_lines(["step", "ratio", "25 %", "75 %", "ms"], [row[:-1] for row in rows])
        lines = [
            f"{line:<42}  {words}" for line, words in zip(table, ["timed", *(row[-1] for row in rows)], strict=True)
        ]
        return "\n".join([*configuration_lines(self.configuration), "", *lines])

    def notes(self) -> list[str]:
        """Return what a reader must know: whether the run was stopped."""
        return [f"stopped: these figures are PARTIAL, of {self.rounds} rounds"] if self.partial else []


@dataclass(frozen=True)
class _Given:
    """What all steps work on. What a step needs and is not timed is made in the round that warms up."""

    clip: Clip
    pixels: Tensor
    texts: Tensor
    folder: Path

    @cached_property
    def plain(self) -> Callable[[Tensor], Tensor]:
        """The model's own library; the bundled model has none but ours."""
        return self.clip.encode_image if self.clip.host is None else read_host(self.clip.host).encode_image

    @cached_property
    def basis(self) -> HeadBasis:
        return basis_of(self.clip.vision)

    def moments(self) -> Moments:
        parts = decompose(self.clip, self.pixels)
        return Moments.of(coordinates_of(self.basis, self.clip.vision, parts.trace), basis=self.basis)

    @cached_property
    def named(self) -> tuple[Moments, Tensor]:
        """Moments of random coordinates of full rank, and texts: TextSpan's time does not depend on values."""
        shape = (2 * self.basis.d, *self.basis.rows.shape[:2], self.basis.d)
        return Moments.of(_random(2, *shape), basis=self.basis), _random(3, POOL, self.clip.vision.embed)

    def index(self) -> Path:
        from clip_anatomy.store.index import index

        store = Path(mkdtemp(dir=self.folder)) / "store"
        index(self.clip, f"world:{len(self.pixels)}:test", store, batch=len(self.pixels))
        return store

    @cached_property
    def store(self) -> Any:
        from clip_anatomy.store.store import Store

        return Store.open(self.index())

    def search(self) -> object:
        from clip_anatomy.retrieval.search import search

        return search(self.store, self.store.rows()[0].id, [(self.store.manifest.layers[-1], 0)], k=FOUND)


Step = Callable[[_Given], object]
STEPS: dict[str, tuple[str, Step]] = {
    "decompose": ("heads and MLPs of all layers", lambda it: decompose(it.clip, it.pixels)),
    "tokens": (
        f"also heads × tokens toward {TEXTS} texts",
        lambda it: decompose(it.clip, it.pixels, texts=it.texts).tokens(it.texts),
    ),
    "moments": ("heads of all layers, and their moments in float64", _Given.moments),
    "replace": ("the embedding without one head", lambda it: replace_parts(it.clip, it.pixels, "0.0", by="zero")),
    "heatmap": (f"maps of {TEXTS} texts by the decomposition", lambda it: heatmap(it.clip, it.pixels, it.texts)),
    "surgery": ("the same by CLIP Surgery", lambda it: heatmap(it.clip, it.pixels, it.texts, "surgery")),
    "textspan": (
        f"all heads, {POOL} texts, {PICKS} picks, any number of pictures",
        lambda it: textspan(*it.named, PICKS),
    ),
    "index": ("as many pictures of the demo world drawn, split and stored", _Given.index),
    "search": (f"the {FOUND} nearest of these in one head", _Given.search),
}
"""Name → what is timed, in words and as a function. One line adds a row to the table."""


def speed(
    clip: Clip, pictures: int = PICTURES, rounds: int | None = None, progress: Progress | None = None
) -> SpeedTable:
    """Time every step beside plain `encode_image`: all take turns, so that other work on the machine meets all alike.

    Ctrl-C ends the run and gives the rounds so far, marked as partial.

    Args:
        clip: an opened model.
        pictures: in a batch, of random pixels at the model's own size.
        rounds: how often; by default for half a minute, at least three and at most eleven times.
        progress: told rounds.

    Returns:
        Ratios with quartiles over rounds; a step that has no meaning on this model says why.

    Example:
        >>> import clip_anatomy as ca
        >>> [row.step for row in speed(ca.load("demo"), pictures=2, rounds=1).rows][:3]
        ['decompose', 'tokens', 'moments']
    """
    rows, cols = (n * side for n, side in zip(clip.vision.grid, clip.patch, strict=True))
    tell, why, partial = progress or silent, dict[str, str](), False
    taken: list[dict[str, float]] = []
    with TemporaryDirectory(prefix="clip-anatomy-speed-") as folder, torch.no_grad():
        pixels = _random(0, pictures, 3, rows, cols).to(clip.device, clip.vision.dtype)
        given = _Given(clip, pixels, _random(1, TEXTS, clip.vision.embed).to(clip.device), Path(folder))
        began = time.perf_counter()
        try:
            for number in range(-1, rounds or MOST_ROUNDS):  # the first warms up
                spent = time.perf_counter() - began
                if rounds is None and number >= LEAST_ROUNDS and spent + spent / (number + 1) > SECONDS:
                    break
                tell("timing rounds", number + 1, rounds or MOST_ROUNDS)
                taken.append({"": seconds_of(lambda: given.plain(pixels), clip.device)})
                for name, (_, step) in STEPS.items():
                    try:
                        if name not in why:
                            taken[-1][name] = seconds_of(lambda step=step: step(given), clip.device)
                    except (UnsupportedModel, BadSpec, MissingExtra) as error:
                        why[name] = str(error)
        except KeyboardInterrupt:
            taken.pop()
            if len(taken) < 2:  # nothing to tell
                raise
            partial = True
    measured = taken[1:]
    configuration = {
        "model": clip.name,
        "weights": clip.digest,
        "input": f"{pictures} random pictures of {rows} × {cols} pixels, {clip.vision.dtype}".replace("torch.", ""),
        "machine": f"{clip.device}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "rounds": str(len(measured)),
    }
    plain = torch.tensor([one[""] for one in measured], dtype=torch.float64)
    found = tuple(_row(name, measured, plain, why.get(name, "")) for name in STEPS)
    return SpeedTable(found, float(plain.quantile(0.5)), pictures, len(measured), partial, configuration)


def _row(name: str, measured: list[dict[str, float]], plain: Tensor, why: str) -> Speed:
    if why:
        nan = float("nan")
        return Speed(name, nan, nan, nan, nan, nan, why)
    seconds = plain.new_tensor([one[name] for one in measured])
    ratios = seconds / plain
    low, middle, high = ratios.quantile(plain.new_tensor([0.25, 0.5, 0.75])).tolist()
    return Speed(name, middle, low, high, float(ratios.min()), float(seconds.quantile(0.5)))


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Time some work to the end, also on a device that works behind the program."""
    module: Any = getattr(torch, device.type, None)
    wait = getattr(module, "synchronize", lambda: None)
    wait()
    began = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - began


def _random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
