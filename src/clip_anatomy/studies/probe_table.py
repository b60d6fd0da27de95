"""`ProbeTable`: what linear probes read off the whole embedding and off parts of it, side by side."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip_anatomy.atomic_output import as_json, write_file
from clip_anatomy.public_functions import public
from clip_anatomy.results import Result

__all__ = ["ProbeRow", "ProbeTable"]


@dataclass(frozen=True)
class ProbeRow:
    """How well one kind of feature tells the classes apart, on test images.

    Attributes:
        name: what the probe sees.
        accuracy: over all test images, in 0..1.
        interval: 95 % bootstrap interval of it.
        per_class: mean over classes.
        groups: accuracy of each group.
        worst: the worst group and its accuracy; see `worst_group`.
        worst_interval: 95 % bootstrap interval of the worst group's.
        method: how it was trained.
        strength: regularisation chosen.
        converged: whether training came to its end.
        trained: accuracy on the training images.
        seconds: wall time.
    """

    name: str
    accuracy: float
    interval: tuple[float, float]
    per_class: float
    groups: Mapping[str, float]
    worst: tuple[str, float]
    worst_interval: tuple[float, float]
    method: str
    strength: float
    converged: bool
    trained: float = float("nan")
    seconds: float = 0.0


@public
@dataclass(frozen=True, repr=False)
class ProbeTable(Result):
    """Probes side by side.

    Attributes:
        rows: one per kind of feature; the first is the whole embedding.
        label: column of the classes.
        classes: the classes.
        train: training images, those to choose the strength on among them.
        test: test images.
        images: test images of each group.
        split: where the split comes from, in words.
        commonest: accuracy of naming the class that most training images have, whatever is seen.
        notes: what must be said about the figures.
    """

    rows: tuple[ProbeRow, ...]
    label: str
    classes: tuple[str, ...]
    train: int
    test: int
    images: Mapping[str, int]
    split: str
    commonest: float
    notes: tuple[str, ...] = ()

    def summary(self) -> str:
        """Return what was probed, the table and the notes, as plain text."""
        head = (
            f"linear probes of {self.label!r} ({len(self.classes)} classes), {self.rows[0].method}: {self.train:,} training images, "
            f"{self.test:,} test images, split: {self.split}"
        )
        commonest = f"the commonest class, whatever is seen: {100 * self.commonest:.1f}"
        return "\n".join([head, self.table(), commonest, *(f"note: {one}" for one in self.notes)])

    def table(self) -> str:
        """Return percentages, one kind of feature a line, as plain text."""
        width = max(len("percent right"), *(len(row.name) for row in self.rows))
        lines = [f"{'percent right':<{width}}  accuracy  (95 %)         mean per class  worst group (images)"]
        for row in self.rows:
            low, high = (f"{100 * x:.1f}" for x in row.interval)
            name, worst = row.worst
            lines.append(
                f"{row.name:<{width}}  {100 * row.accuracy:8.1f}  {f'({low}-{high})':<13}  {100 * row.per_class:14.1f}  "
                f"{100 * worst:5.1f}  {name} ({self.images[name]:,})"
            )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, ready for JSON."""
        return {
            "schema": "clip-anatomy/probe/1",
            "label": self.label,
            "classes": list(self.classes),
            "train": self.train,
            "test": self.test,
            "images": dict(self.images),
            "split": self.split,
            "commonest": self.commonest,
            "rows": [
                {**vars(row), "groups": dict(row.groups), "worst_group": row.worst[0], "worst": row.worst[1]}
                for row in self.rows
            ],
            "notes": list(self.notes),
        }

    def save(self, folder: str | Path, **options: Any) -> Path:
        """Write probe.json into a folder.

        Raises:
            OutputError: it cannot be written.
        """
        path = Path(folder) / "probe.json"
        write_file(path, as_json(self.to_dict()))
        return path
