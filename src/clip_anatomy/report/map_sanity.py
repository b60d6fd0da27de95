"""`heatmap --sanity`: whether the maps that were just drawn mean anything, method by method."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image

from clip_anatomy.errors import BadImage
from clip_anatomy.evaluation.faithfulness import Faithfulness, faithfulness
from clip_anatomy.evaluation.occlusion import REMOVALS
from clip_anatomy.evaluation.sanity import Sanity, sanity
from clip_anatomy.evaluation.sanity_result import counted
from clip_anatomy.report.map_gather import Asked
from clip_anatomy.report.map_request import Request
from clip_anatomy.report.step_progress import stages

__all__ = ["MOST", "Judged", "judge"]

MOST = 8  # pictures unless another number is asked for: the answers are about methods, and each picture and method costs some 150 forwards
STEPS = 8
DRAWS = 2


@dataclass(frozen=True)
class Judged:
    """What came of every method.

    Attributes:
        methods: sanity, and faithfulness by each way of removal.
        images: pictures that were used.
        left: pictures beyond those that were not.
    """

    methods: tuple[tuple[Sanity, tuple[Faithfulness, ...]], ...]
    images: int
    left: int

    def table(self) -> str:
        """Everything for people."""
        lines = [text for one, further in self.methods for text in (one.table(), *(f.table() for f in further), "")]
        if self.left:
            every = self.images + self.left
            lines.append(
                f"(the first {counted(self.images, 'picture')}; {self.left:,} more drawn and not judged: "
                f"--sanity-pictures {every})"
            )
        return "\n".join(lines).rstrip("\n")

    def to_list(self) -> list[dict[str, Any]]:
        """Everything, ready for JSON: one entry per method."""
        return [
            {**one.to_dict(), "faithfulness": [f.to_dict() for f in further], "pictures_left_out": self.left}
            for one, further in self.methods
        ]


def judge(request: Request, asked: Asked, most: int = MOST) -> Judged:
    """Judge the methods on the first pictures that can be read.

    Args:
        request: the model and the pictures, at least one of which can be read.
        asked: texts, methods, size and options, as they were drawn.
        most: of the pictures.
    """
    clip, sources = request.clip, request.sources
    pictures: list[Image.Image] = []
    taken = 0
    for source in sources:
        if len(pictures) == most:
            break
        taken += 1
        try:
            pictures.append(request.read(source))
        except BadImage:
            continue  # it was named when it was to be drawn
    options = dict(asked.options)
    found: list[tuple[Sanity, tuple[Faithfulness, ...]]] = []
    parts = 1 + len(REMOVALS)
    with stages() as tell:
        for at, method in enumerate(asked.methods):

            def told(part: int, method: str = method, at: int = at) -> Callable[[str, int, int], None]:
                def report(what: str, done: int, total: int) -> None:
                    share = done / (total or len(pictures))
                    tell(f"{method}: {what}", int(100 * (at * parts + part + share)), 100 * parts * len(asked.methods))

                return report

            names = asked.texts.names
            one = sanity(clip, pictures, names, method, size=asked.size, report=told(0), **options)
            further = tuple(
                faithfulness(
                    clip, pictures, names, method, removal=removal, steps=STEPS, draws=DRAWS, size=asked.size,
                    report=told(part), **options,
                )
                for part, removal in enumerate(REMOVALS, 1)
            )  # fmt: skip
            found.append((one, further))
    return Judged(tuple(found), len(pictures), len(sources) - taken)
