"""Linear probes on a store: the whole embedding beside ablated ones, without reading an image."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from clip_anatomy.edits.selection import Selection
from clip_anatomy.errors import BadInput, BadSpec
from clip_anatomy.naming.atlas import Atlas
from clip_anatomy.retrieval.store_atlas import atlas_of, model_of
from clip_anatomy.store.store import Store
from clip_anatomy.studies.labelled_images import Labelled
from clip_anatomy.studies.linear_probe import METHODS, Batch, LinearProbe, fit_probe

__all__ = ["ProbeRow", "ProbeTable", "probe"]

AT_ONCE = 4096
IN_MEMORY = 2**26  # numbers: 131,000 images of 512; beyond, batches are streamed
RESAMPLES = 2000


@dataclass(frozen=True)
class ProbeRow:
    """How well one kind of feature tells the classes apart, on test images.

    Attributes:
        name: what the probe sees.
        accuracy: over all test images, in 0..1.
        interval: 95 % bootstrap interval of it.
        per_class: mean over classes.
        groups: accuracy of each group.
        worst_interval: 95 % bootstrap interval of the worst group's.
        trained: accuracy on the training images.
        method: how it was trained.
        strength: regularisation chosen.
        converged: whether training came to its end.
        seconds: wall time.
    """

    name: str
    accuracy: float
    interval: tuple[float, float]
    per_class: float
    groups: Mapping[str, float]
    worst_interval: tuple[float, float]
    trained: float
    method: str
    strength: float
    converged: bool
    seconds: float

    @property
    def worst(self) -> tuple[str, float]:
        """The worst group and its accuracy."""
        return min(self.groups.items(), key=lambda one: one[1])


@dataclass(frozen=True)
class ProbeTable:
    """Probes side by side.

    Attributes:
        rows: one per kind of feature; the first is the whole embedding.
        classes: the classes.
        train: training images, those to choose the strength on among them.
        test: test images.
        images: test images of each group.
        split: where the split comes from, in words.
        notes: what must be said about the figures.
    """

    rows: tuple[ProbeRow, ...]
    classes: tuple[str, ...]
    train: int
    test: int
    images: Mapping[str, int]
    split: str
    notes: tuple[str, ...] = ()

    def table(self) -> str:
        """Percentages, one kind of feature a line, as plain text."""
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
        """As JSON holds it."""
        return {
            "schema": "clip-anatomy/probe/1",
            "classes": list(self.classes),
            "train": self.train,
            "test": self.test,
            "images": dict(self.images),
            "split": self.split,
            "rows": [
                {**vars(row), "groups": dict(row.groups), "worst_group": row.worst[0], "worst": row.worst[1]}
                for row in self.rows
            ],
            "notes": list(self.notes),
        }


def probe(
    store: Store,
    *,
    last: Sequence[int] | None = None,
    without: Sequence[str] = (),
    atlas: "Atlas | str | Path | None" = None,
    label: str = "label",
    group: str | None = None,
    split: str | None = None,
    method: str | None = None,
    epochs: int = 10,
    seed: int = 0,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> ProbeTable:
    """Train linear probes on the full embedding and on ablated ones, side by side.

    An ablated embedding has everything but some parts at its mean over the data. A constant changes nothing for a linear probe
    that has a bias, so the constant is left away; contributions are divided by ‖embedding‖, the full embedding is too.

    Args:
        store: a store whose images are labelled.
        last: for each number k, a probe that sees only what the attention of the last k layers wrote; by default of 4, or of as many as the
            store holds.
        without: for each selection (`9.3,10.1`, `layer=0-5`, `role=background`, …), a probe on the embedding without these heads.
        atlas: names of the heads, for "role=" and "words="; by default the one kept in the store, or a quick one.
        label: column of the classes: label, group, or one of the table that came with the images.
        group: column of the groups for the worst one; by default "group" where the images have it, else the class.
        split: column that says train and test; by default "split" where it does, else a fifth of the images is kept for the test
            by a hash of their ids.
        method: "logistic", "sgd" (streamed) or "ridge" (closed form, streamed); by default logistic while the features fit into
            memory, else sgd.
        epochs: passes of sgd.
        seed: of the split by ids, of sgd and of the bootstrap.
        progress: called with (what, done, of how many).

    Returns:
        ProbeTable, its first row the full embedding.

    Raises:
        BadInput: no labels, one class only, a column that is not there, no training or no test images.
        BadSpec: unknown method, layers or heads that the store does not hold.
        MissingExtra: scikit-learn is not installed.

    Example:
        >>> import tempfile
        >>> import clip_anatomy as ca
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = ca.index(ca.load("demo"), "world:120:test", folder + "/store")
        ...     found = probe(ca.Store.open(folder + "/store"), label="background", method="ridge", last=[1])
        >>> [row.name for row in found.rows], found.train + found.test
        (['full embedding', 'attention of the last layer only'], 120)
    """
    if method is not None and method not in METHODS:
        raise BadSpec(f"--method {method} is not known. Type one of: {', '.join(METHODS)}")
    features = _features(store, last, without, atlas, progress)
    images = Labelled.of(store, label=label, group=group, split=split, seed=seed)
    trained_on = len(images.train) + len(images.held)
    size = trained_on * store.manifest.embed
    chosen = method or ("logistic" if size <= IN_MEMORY else "sgd")
    rows: list[ProbeRow] = []
    for at, feature in enumerate(features):
        began = time.monotonic()

        def tell(done: int, of: int, name: str = feature.name, at: int = at) -> None:
            if progress is not None:
                progress(name, at * of + done, len(features) * of)

        read = _reader(store, feature, images.labels, seed)
        fitted = fit_probe(
            read(images.train), read(images.held), len(images.classes), chosen, epochs=epochs, seed=seed, progress=tell
        )
        row = _row(images, _right(store, feature, fitted, images), seed)
        trained = fitted.accuracy(read(images.train)())
        seconds = time.monotonic() - began
        told = (fitted.method, fitted.strength, fitted.converged)
        rows.append(ProbeRow(feature.name, *row, trained, *told, seconds))
    notes = [*images.notes, *(f"Training on {row.name} stopped before its end." for row in rows if not row.converged)]
    counts = {name: int((images.groups[images.test] == at).sum()) for at, name in enumerate(images.names)}
    there = {name: count for name, count in counts.items() if count}
    return ProbeTable(tuple(rows), images.classes, trained_on, len(images.test), there, images.told, tuple(notes))


@dataclass(frozen=True)
class _Feature:
    """What a probe sees: only some heads, or all but some."""

    name: str
    heads: tuple[tuple[int, int], ...]
    only: bool


def _features(
    store: Store,
    last: Sequence[int] | None,
    without: Sequence[str],
    atlas: "Atlas | str | Path | None",
    progress: Callable[[str, int, int | None], None] | None,
) -> list[_Feature]:
    manifest, heads = store.manifest, store.manifest.heads
    found = [_Feature("full embedding", (), only=False)]
    kept = _kept_at_end(store)
    for k in [min(4, kept)] * (kept > 0) if last is None else last:
        layers = range(manifest.depth - k, manifest.depth)
        if k < 1 or any(layer not in manifest.layers for layer in layers):
            raise BadSpec(
                f"--last {k}: the store holds layers {list(manifest.layers)} of {manifest.depth}. Type a number of 1 to "
                f"{kept}"
            )
        told = f"last {k} layers" if k > 1 else "last layer"
        pairs = tuple((layer, head) for layer in layers for head in range(heads))
        found.append(_Feature(f"attention of the {told} only", pairs, only=True))
    named: Atlas | None = None
    for spec in without:
        if ("role=" in spec or "words=" in spec) and named is None:
            named = atlas_of(store, lambda: model_of(store), atlas, progress)
        chosen = Selection.parse(spec, manifest.layers, heads, named)
        if not chosen.heads or len(chosen) != len(chosen.heads):
            raise BadSpec(
                f"--without {spec}: a probe without heads was expected. Type, for example: --without layer=0-3"
            )
        found.append(_Feature(f"without {spec}", chosen.heads, only=False))
    return found


def _kept_at_end(store: Store) -> int:
    kept = [layer in store.manifest.layers for layer in range(store.manifest.depth)]
    return kept[::-1].index(False) if False in kept else store.manifest.depth


def _reader(
    store: Store, feature: _Feature, labels: np.ndarray, seed: int
) -> Callable[[np.ndarray], Callable[[], Iterator[Batch]]]:
    """Batches of a feature for some images, as often as they are asked for.

    Images are dealt to batches at random: collections are walked class by class, and a streamed probe would see one class at a
    time. Within a batch they are in the store's order, which reads faster.
    """

    def of(places: np.ndarray) -> Callable[[], Iterator[Batch]]:
        mixed = np.random.default_rng(seed).permutation(places)

        def batches() -> Iterator[Batch]:
            for start in range(0, len(mixed), AT_ONCE):
                some = np.sort(mixed[start : start + AT_ONCE])
                yield _read(store, feature, some), torch.from_numpy(labels[some])

        return batches

    return of


def _read(store: Store, feature: _Feature, places: np.ndarray) -> Float32[Tensor, "image embed"]:
    found = torch.zeros(len(places), store.manifest.embed) if feature.only else store.embeddings(places, unit=True)
    sign = 1.0 if feature.only else -1.0
    for layer, head in feature.heads:
        frame = store.basis.rows[store.layer_at(layer), head].float()
        found.addmm_(store.heads(layer, head, places).float(), frame, alpha=sign)
    if not bool(torch.isfinite(found).all()):
        raise BadInput(f"{store.path} holds numbers that are not finite. Type: clip-anatomy verify {store.path}")
    return found


def _right(store: Store, feature: _Feature, fitted: LinearProbe, images: Labelled) -> np.ndarray:
    """Whether each test image is right, in their order."""
    found = [
        (fitted.predict(_read(store, feature, some)).numpy() == images.labels[some])
        for some in np.array_split(images.test, -(-len(images.test) // AT_ONCE))
    ]
    return np.concatenate(found)


def _row(
    images: Labelled, right: np.ndarray, seed: int
) -> tuple[float, tuple[float, float], float, dict[str, float], tuple[float, float]]:
    """Accuracy and its interval, mean over classes, accuracy of each group and the interval of the worst."""
    labels, groups = images.labels[images.test], images.groups[images.test]
    there = np.unique(groups[groups >= 0])
    counts = np.array([(groups == g).sum() for g in there])
    hits = np.array([right[groups == g].sum() for g in there])
    # Images drawn again within each group: the number right is then binomial, no image need be drawn.
    dice = np.random.default_rng(seed)
    again = dice.binomial(counts, hits / counts, (RESAMPLES, len(there)))
    low, high = np.quantile(dice.binomial(len(right), right.mean(), RESAMPLES) / len(right), (0.025, 0.975)).tolist()
    worst_low, worst_high = np.quantile((again / counts).min(1), (0.025, 0.975)).tolist()
    per_class = float(np.mean([right[labels == c].mean() for c in np.unique(labels)]))
    by = {images.names[g]: float(h / n) for g, h, n in zip(there, hits, counts, strict=True)}
    return float(right.mean()), (low, high), per_class, by, (worst_low, worst_high)
