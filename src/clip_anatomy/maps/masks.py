"""`Masks`: which text each pixel of a picture belongs to, and how that was found."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, overload

import numpy as np
from jaxtyping import Bool, Int16

from clip_anatomy.data.picture_batches import Failed
from clip_anatomy.errors import BadInput, BadSpec
from clip_anatomy.loading.typed_texts import TypedText, shorten
from clip_anatomy.maps.coco_masks import coco
from clip_anatomy.maps.map_result import Maps
from clip_anatomy.maps.point_prompts import Prompts, prompts
from clip_anatomy.maps.thresholds import UNSEEN
from clip_anatomy.number_ranges import within
from clip_anatomy.public_functions import public
from clip_anatomy.results import Result, text_table

__all__ = ["MaskSettings", "Masks", "PackedLabels"]

SCHEMA = "clip-anatomy/segment/1"
MOST_ROWS = 24  # pictures in a summary


class PackedLabels(Sequence[Int16[np.ndarray, "..."]]):
    """Label maps, kept compressed: those of a folder of photographs would not fit into memory as they are.

    Example:
        >>> packed = PackedLabels()
        >>> packed.add(np.array([[0, 1], [1, -1]], dtype=np.int16))
        >>> packed[0].tolist(), len(packed)
        ([[0, 1], [1, -1]], 1)
    """

    def __init__(self) -> None:
        """Begin without any."""
        self._packed: list[tuple[bytes, tuple[int, int]]] = []
        self._last: tuple[int, Int16[np.ndarray, "row col"]] | None = None

    def add(self, labels: Int16[np.ndarray, "row col"]) -> None:
        """Keep one more label map."""
        self._packed.append(
            (zlib.compress(np.ascontiguousarray(labels).tobytes(), 1), (labels.shape[0], labels.shape[1]))
        )

    @staticmethod
    def joined(several: "Sequence[PackedLabels]") -> "PackedLabels":
        """Return those of several, one after the other, without unpacking them."""
        whole = PackedLabels()
        whole._packed = [one for labels in several for one in labels._packed]
        return whole

    def in_order(self, order: Sequence[int]) -> "PackedLabels":
        """Return the same in another order, without unpacking them."""
        ordered = PackedLabels()
        ordered._packed = [self._packed[at] for at in order]
        return ordered

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._packed)

    @overload
    def __getitem__(self, at: int) -> Int16[np.ndarray, "row col"]: ...
    @overload
    def __getitem__(self, at: slice) -> list[Int16[np.ndarray, "row col"]]: ...
    def __getitem__(self, at: int | slice) -> Any:
        """Unpack one, or several."""
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        if self._last is None or self._last[0] != at:
            data, shape = self._packed[at]
            self._last = at, np.frombuffer(zlib.decompress(data), dtype=np.int16).reshape(shape)
        return self._last[1].copy()


@dataclass(frozen=True)
class MaskSettings:
    """Hold how masks were made: everything needed to make them again.

    Attributes:
        method: of `heatmap`, in words.
        options: that were given to it.
        threshold: a rule of RULES, or a share of the map's range.
        background: texts that compete for the pixels and are no label.
        size: what the model looked at.
        at: resolution of the labels.
        refine: how the maps were refined, a name of `pamr.REFINERS`; None for not at all.
    """

    method: str
    options: dict[str, Any]
    threshold: str | float
    background: tuple[str, ...]
    size: str
    at: str
    refine: str | None

    def __str__(self) -> str:
        """Return one line for people."""
        given = "".join(f", {name}={value}" for name, value in self.options.items())
        rule = self.threshold if isinstance(self.threshold, str) else f"{self.threshold:g} of the map's range"
        behind = f", background texts {', '.join(map(repr, self.background))}" if self.background else ""
        refine = f", refined by {self.refine}" if self.refine else ", not refined"
        return f"maps: {self.method}{given}; looked at: {self.size}; threshold: {rule}{behind}; at {self.at} resolution{refine}"


@public
@dataclass(frozen=True, repr=False)
class Masks(Result):
    """Which text each pixel belongs to.

    Attributes:
        labels: per image [row, col], unpacked when it is asked for: k for texts[k − 1], 0 for none of them, −1 where the crop did not look.
        texts: the labels' words, in the order of their numbers.
        maps: the maps they were made from, one per text and then one per background text.
        thresholds: per image the number above which a pixel is somebody's (−infinity where there was no threshold).
        how: everything needed to make them again.
        together: groups of texts whose points for SAM are also wanted together.
        typed: the texts with what the model cannot make of them; () where nobody checked.
        notes: what else a reader must know.

    Example:
        >>> import clip_anatomy as ca
        >>> from clip_anatomy.loading.demo import examples
        >>> from clip_anatomy.maps.segment import segment
        >>> masks = segment(ca.load("demo"), examples()[:1], ["a bird"])
        >>> masks.labels[0].shape, masks.mask(0, "a bird").dtype
        ((64, 64), dtype('bool'))
    """

    labels: Sequence[Int16[np.ndarray, "..."]] = field(repr=False)
    texts: tuple[str, ...]
    maps: Maps = field(repr=False)
    thresholds: tuple[float, ...]
    how: MaskSettings
    together: tuple[tuple[str, ...], ...] = ()
    typed: tuple[TypedText, ...] = ()
    notes: tuple[str, ...] = ()
    presenter: ClassVar[str] = "masks_folder"

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def mask(self, image: int, text: int | str = 0) -> Bool[np.ndarray, "row col"]:
        """Return where one text is in one image.

        Raises:
            BadSpec: there is no such text.
        """
        return self.labels[within("image", image, len(self))] == self._number(text) + 1

    def overlay(self, image: int = 0) -> Any:
        """Paint the masks over their picture, with the texts below: a Pillow image.

        Raises:
            BadInput: the images were preprocessed tensors, which cannot be drawn.
        """
        return self._drawn_by("overlaid", within("image", image, len(self)))

    def shares(self, image: int) -> dict[str, float]:
        """Return the share of the pixels seen that each text holds."""
        labels = self.labels[within("image", image, len(self))]
        visible = max(1, int((labels != UNSEEN).sum()))
        return {text: int((labels == k + 1).sum()) / visible for k, text in enumerate(self.texts)}

    def prompts(self, image: int, *texts: int | str) -> Prompts:
        """Return points and boxes for SAM: of one text, or of several together ("a + b"); by default of the first.

        Positive points lie inside the mask, the strongest first. A text that holds no pixel of the image adds nothing.

        Raises:
            BadSpec: there is no such text, or the images were preprocessed tensors, so that nobody knows the originals.
        """
        numbers = [self._number(text) for text in texts or (0,)]
        one = self.maps[within("image", image, len(self))]
        if one.geometries is None:
            raise BadSpec("these images were preprocessed tensors: points lie nowhere. Type: segment(clip, paths, ...)")
        labels, where, names = self.labels[image], one.geometries[0], [self.texts[k] for k in numbers]
        there = [k for k in numbers if (labels == k + 1).any()]
        if not there:  # a map without a mask has a highest place too, and it means nothing
            return Prompts(" + ".join(names), (), (), (), where.picture)
        mask = np.isin(labels, [k + 1 for k in there])
        points = prompts(one.values[0, there], [self.texts[k] for k in there], where, mask)
        return replace(points, text=" + ".join(names))

    def _number(self, text: int | str) -> int:
        if isinstance(text, str) and text in self.texts:
            return self.texts.index(text)
        if isinstance(text, int) and 0 <= text < len(self.texts):
            return text
        raise BadSpec(f"there is no mask of {text!r}. Type one of: {', '.join(map(repr, self.texts))}")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the images."""
        return self.maps.names

    @property
    def failed(self) -> tuple[Failed, ...]:
        """Name and error of pictures that could not be used."""
        return self.maps.run.failed if self.maps.run else ()

    @property
    def all_notes(self) -> list[str]:
        """What a reader must know: of the run, of pictures smaller than a patch, of each text."""
        of_texts = [f"“{text.short}”: {note}" for text in self.typed for note in text.notes]
        return [*self.notes, *self.maps.notes(), *of_texts]

    def to_dict(self) -> dict[str, Any]:
        """Return shares, thresholds, prompts and how they were found; the masks themselves in COCO's format."""
        from clip_anatomy import __version__

        texts = self.typed or tuple(map(TypedText, self.texts))
        return {
            "schema": SCHEMA,
            "version": __version__,
            **({} if self.maps.run is None else {"model": self.maps.run.model}),
            "how": str(self.how),
            "notes": [*self.notes, *self.maps.notes()],
            "texts": [{"text": text.text, "notes": list(text.notes)} for text in texts],
            "failed": [{"image": name, "error": error} for name, error in self.failed],
            "files": [],
            "images": [self.entry(i) for i in range(len(self))],
            "coco": self.to_coco(),
        }

    def to_coco(self, names: Sequence[str] | None = None) -> dict[str, Any]:
        """Return the masks in COCO's format, under the pictures' own names or others."""
        if names is not None and len(names) != len(self):
            raise BadInput(f"{len(names)} names of {len(self)} pictures. Type one name for each, or leave them away")
        return coco(self.labels, self.texts, self.names if names is None else names, str(self.how))

    def entry(self, image: int) -> dict[str, Any]:
        """Return what is known of one image: its size, the share of each text, points and boxes."""
        labels = self.labels[within("image", image, len(self))]
        known: dict[str, Any] = {
            "image": self.names[image],
            "width": labels.shape[1],
            "height": labels.shape[0],
            "threshold": float(f"{self.thresholds[image]:.6g}") if np.isfinite(self.thresholds[image]) else None,
            "unseen": round(float((labels == UNSEEN).mean()), 6),
            "shares": {text: round(share, 6) for text, share in self.shares(image).items()},
        }
        if self.maps.geometries is not None:
            known["prompts"] = [self.prompts(image, k).to_dict() for k in range(len(self.texts))]
            if self.together:
                known["together"] = [self.prompts(image, *group).to_dict() for group in self.together]
        return known

    def summary(self) -> str:
        """Return a table: for each picture and text how much it holds, and its largest box; and how that was found."""
        return f"{self.table()}\n{self.how}"

    def table(self, file: str = "") -> str:
        """Return the table; `file` is where the rest is, if there are too many pictures."""
        rows: list[list[str]] = []
        for i, name in enumerate(self.maps.short_names[:MOST_ROWS]):
            shares = self.shares(i)
            for k, text in enumerate(self.texts):
                boxes = () if self.maps.geometries is None else self.prompts(i, k).boxes
                box = ", ".join(f"{edge:.0f}" for edge in boxes[0]) if boxes else ""
                rows.append(["" if k else name, shorten(text, 36), f"{shares[text]:.1%}", str(len(boxes)), box])
        lines = text_table(
            ["picture", "text", ">share", ">regions", ">largest box (x0, y0, x1, y1)"], rows, groups=True
        )
        more = len(self) - MOST_ROWS
        where = f":\n{file}" if file else ""
        return f"{lines}\n… and {more:,} more pictures{where}" if more > 0 else lines

    __str__ = summary
