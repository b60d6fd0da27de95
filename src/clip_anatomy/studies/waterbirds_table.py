"""The published removal of a spurious cue: which heads of which models were ablated on Waterbirds, and the result as a table.

Source: Gandelsman, Efros, Steinhardt, "Interpreting CLIP's Image Representation via Text-Based Decomposition" (ICLR 2024), §5.1,
and its released code: the listed heads, all attention before the last four layers and all MLPs (the input embedding with
them) are put at their mean over the test images; the class is the larger of two dot products, each class text averaged over
CLIP's 80 templates. The heads were picked by people who read the heads' texts; they are facts about those weights and no others.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip_anatomy.atomic_output import as_json, write_file
from clip_anatomy.errors import BadSpec
from clip_anatomy.results import Result

__all__ = ["LATE", "PAPER", "PaperHeads", "PaperRow", "PaperTable", "paper_heads"]

LATE = 4  # layers whose attention is kept


@dataclass(frozen=True)
class PaperHeads:
    """The heads that were ablated in one model, as (layer, head) from 0.

    Attributes:
        model: architecture in open_clip's words.
        weights: open_clip's tag of the weights that the heads were picked on.
        layers: of the architecture.
        heads: in each layer.
        d: width of a head.
        patch: pixels along a side of a patch.
        location: heads that answer where a picture was taken.
        setting: heads that answer to the setting around the object.
        reported: worst-group accuracy before and after, in percent, as others report it; not checked here, since that needs the weights.
    """

    model: str
    weights: str
    layers: int
    heads: int
    d: int
    patch: int
    location: tuple[tuple[int, int], ...]
    setting: tuple[tuple[int, int], ...]
    reported: tuple[float, float]

    @property
    def spec(self) -> str:
        """What to type for this model."""
        return f"open_clip:{self.model}/{self.weights}"

    @property
    def both(self) -> tuple[tuple[int, int], ...]:
        """All heads of the protocol."""
        return tuple(sorted({*self.location, *self.setting}))


PAPER = {
    "ViT-B-16": PaperHeads(
        "ViT-B-16", "laion2b_s34b_b88k", 12, 12, 64, 16,
        ((11, 6), (11, 0)),
        ((11, 3), (10, 11), (10, 10), (9, 8), (9, 6)),
        (45.6, 57.5),
    ),
    "ViT-L-14": PaperHeads(
        "ViT-L-14", "laion2b_s32b_b82k", 24, 16, 64, 14,
        ((21, 1), (22, 12), (22, 13), (21, 11), (21, 14), (23, 6)),
        ((21, 3), (21, 6), (21, 8), (21, 13), (22, 2), (22, 12), (22, 15), (23, 1), (23, 3), (23, 5)),
        (47.7, 72.8),
    ),
    "ViT-H-14": PaperHeads(
        "ViT-H-14", "laion2b_s32b_b79k", 32, 16, 80, 14,
        ((31, 8), (30, 15), (30, 12), (30, 6), (29, 14), (29, 8)),
        ((31, 12), (30, 11), (29, 4)),
        (37.2, 43.3),
    ),
}  # fmt: skip
"""The published lists, by architecture."""


def paper_heads(layers: int, heads: int, d: int, patch: int) -> PaperHeads:
    """Find the published list for a model of this shape.

    Raises:
        BadSpec: there is none; names the three models.

    Example:
        >>> paper_heads(12, 12, 64, 16).location
        ((11, 6), (11, 0))
    """
    shape = (layers, heads, d, patch)
    matching = [one for one in PAPER.values() if (one.layers, one.heads, one.d, one.patch) == shape]
    if not matching:
        raise BadSpec(
            f"the published protocol names heads of {', '.join(PAPER)}; this model has {layers} layers of {heads} heads of "
            f"{d}, patches of {patch}. Type, for example: model={PAPER['ViT-B-16'].spec!r}"
        )
    return matching[0]


@dataclass(frozen=True)
class PaperRow:
    """Accuracies in 0..1 with some parts at their mean.

    Attributes:
        name: what is ablated.
        heads: the heads ablated beside early attention and MLPs.
        groups: accuracy of each group.
        average: accuracy over all images.
    """

    name: str
    heads: tuple[tuple[int, int], ...]
    groups: Mapping[str, float]
    average: float

    @property
    def worst(self) -> float:
        """Accuracy of the worst group."""
        return min(self.groups.values())

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, ready for JSON."""
        return {
            "name": self.name, "heads": [list(pair) for pair in self.heads], "groups": dict(self.groups),
            "worst": self.worst, "average": self.average,
        }  # fmt: skip


@dataclass(frozen=True, repr=False)
class PaperTable(Result):
    """The protocol before, after, and beside a control.

    Attributes:
        before: the model as it is.
        late: attention of the last four layers only, no head ablated yet.
        location: of these the location heads ablated.
        setting: of these the setting heads ablated.
        after: both lists ablated: the protocol.
        control: as many heads drawn at random instead, mean of several draws.
        images: images of each group.
        published: the list that was used.
        model: the model it was run on.
        convention: how LayerNorm's mean and biases are shared: "official" is the published code's.
        notes: what must be said about these figures.
    """

    before: PaperRow
    late: PaperRow
    location: PaperRow
    setting: PaperRow
    after: PaperRow
    control: PaperRow
    images: Mapping[str, int]
    published: PaperHeads
    model: str
    convention: str
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> tuple[PaperRow, ...]:
        """All rows in order."""
        return self.before, self.late, self.location, self.setting, self.after, self.control

    def summary(self) -> str:
        """Return the table with the model, the worst group before and after, and the notes, as plain text."""
        before, after, reported = self.before, self.after, self.published.reported
        return "\n".join([
            f"Waterbirds, zero-shot, percent right · {self.model} · heads published for {self.published.spec}",
            self.table(),
            f"worst group {100 * before.worst:.1f} → {100 * after.worst:.1f}, average {100 * before.average:.1f} → "
            f"{100 * after.average:.1f} (worst group as others report it for\n{self.published.spec}: {reported[0]} → {reported[1]})",
            *(f"note: {one}" for one in self.notes),
        ])  # fmt: skip

    def save(self, folder: str | Path, **options: Any) -> Path:
        """Write paper.json into a folder.

        Raises:
            OutputError: it cannot be written.
        """
        path = Path(folder) / "paper.json"
        write_file(path, as_json(self.to_dict()))
        return path

    def table(self) -> str:
        """Return percentages, one row a line, as plain text."""
        groups = list(self.images)
        width = max(len(row.name) for row in self.rows)
        head = " " * width + "".join(f"{name:>{len(name) + 2}}" for name in [*groups, "worst", "average"])
        lines = [head]
        for row in self.rows:
            cells = [(name, row.groups[name]) for name in groups] + [("worst", row.worst), ("average", row.average)]
            lines.append(f"{row.name:<{width}}" + "".join(f"{100 * x:>{len(name) + 2}.1f}" for name, x in cells))
        lines.append(f"{'images':<{width}}" + "".join(f"{self.images[name]:>{len(name) + 2},}" for name in groups))
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, ready for JSON."""
        return {
            "schema": "clip-anatomy/paper/1",
            "model": self.model,
            "list": self.published.spec,
            "convention": self.convention,
            "images": dict(self.images),
            "rows": {
                name: getattr(self, name).to_dict()
                for name in ("before", "late", "location", "setting", "after", "control")
            },
            "reported_elsewhere": {
                "worst_before": self.published.reported[0],
                "worst_after": self.published.reported[1],
            },
            "notes": list(self.notes),
        }
