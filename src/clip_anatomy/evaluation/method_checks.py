"""Whether maps that were just drawn mean anything, method by method: what `heatmap --sanity` prints."""

from dataclasses import dataclass
from typing import Any

from PIL import Image

from clip_anatomy.errors import BadImage, BadInput
from clip_anatomy.evaluation.faithfulness import Faithfulness, faithfulness
from clip_anatomy.evaluation.occlusion import OCCLUSIONS
from clip_anatomy.evaluation.sanity import Sanity, sanity
from clip_anatomy.maps.map_set import MapSet
from clip_anatomy.maps.registry import method_of
from clip_anatomy.progress import Progress, silent

__all__ = ["MOST", "MethodChecks", "method_checks"]

MOST = 8  # pictures unless another number is asked for: the answers are about methods, and each picture and method costs some 150 forwards
STEPS = 8
DRAWS = 2


@dataclass(frozen=True)
class MethodChecks:
    """Sanity and faithfulness of every method.

    Attributes:
        methods: sanity, and faithfulness by each way of occlusion.
        images: pictures that were used.
        left: pictures beyond those that were not.
    """

    methods: tuple[tuple[Sanity, tuple[Faithfulness, ...]], ...]
    images: int
    left: int

    def table(self) -> str:
        """Everything for people."""
        lines = [text for one, further in self.methods for text in (one.summary(), *(f.summary() for f in further), "")]
        return "\n".join(lines).rstrip("\n")

    def to_list(self) -> list[dict[str, Any]]:
        """Everything, ready for JSON: one entry per method."""
        return [
            {**one.to_dict(), "faithfulness": [f.to_dict() for f in further], "pictures_left_out": self.left}
            for one, further in self.methods
        ]


def method_checks(maps: MapSet, most: int = MOST, progress: Progress | None = None) -> MethodChecks:
    """Ask of every method whether its maps mean anything, on the first pictures.

    Args:
        maps: of pictures, by the methods to ask.
        most: of the pictures.
        progress: told which method and step, in percent of all.

    Raises:
        BadInput: maps of preprocessed tensors, or put together by hand.
    """
    run, known, tell = maps.first.run, maps.first.pictures, progress or silent
    if run is None or known is None:
        raise BadInput("these maps do not know their pictures. Type: map_set(clip, paths, texts, methods)")
    pictures: list[Image.Image] = []
    for picture in known[:most]:
        try:
            pictures.append(picture.read(keep_mode=True))
        except BadImage:
            continue  # it has vanished since it was drawn
    names, parts = maps.first.texts, 1 + len(OCCLUSIONS)
    options = {name: value for name, value in run.options.items() if name != "against"}

    def part_of(at: int, method: str) -> Progress:
        def part(what: str, done: int, total: int | None) -> None:
            share = done / (total or len(pictures))
            tell(f"{method}: {what}", int(100 * (at + share)), 100 * parts * len(maps.methods))

        return part

    results: list[tuple[Sanity, tuple[Faithfulness, ...]]] = []
    for at, method in enumerate(one.method for one in maps.methods):
        steps = [part_of(at * parts + part, method) for part in range(parts)]
        compares = "against" in run.options and method_of(run.clip, method).contrasts
        given: dict[str, Any] = {"size": run.size, **(run.options if compares else options)}
        one = sanity(run.clip, pictures, names, method, progress=steps[0], **given)
        further = tuple(
            faithfulness(
                run.clip,
                pictures,
                names,
                method,
                occlusion=occlusion,
                steps=STEPS,
                draws=DRAWS,
                progress=steps[part],
                **given,
            )
            for part, occlusion in enumerate(OCCLUSIONS, 1)
        )
        results.append((one, further))
    return MethodChecks(tuple(results), len(pictures), len(known) - len(pictures))
