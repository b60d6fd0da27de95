"""Linear probes on a store: the whole embedding beside ablated ones, without reading an image."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from clip_anatomy.edits.selection import Selection
from clip_anatomy.errors import BadInput, BadSpec
from clip_anatomy.naming.atlas import Atlas
from clip_anatomy.progress import Progress, silent
from clip_anatomy.public_functions import public
from clip_anatomy.retrieval.store_atlas import atlas_of
from clip_anatomy.store.store import Store
from clip_anatomy.store.store_model import model_of
from clip_anatomy.studies.image_split import Split, train_test_of
from clip_anatomy.studies.linear_probe import METHODS, Batches, LinearProbe, fit_probe
from clip_anatomy.studies.probe_table import ProbeRow, ProbeTable
from clip_anatomy.studies.store_columns import columns_of, few, text_codes, text_column
from clip_anatomy.studies.worst_group import large_groups, small_groups, worst_group

__all__ = ["ProbeImages", "probe", "probe_images"]

AT_ONCE = 4096
IN_MEMORY = 2**26  # numbers: 131,000 images of 512; beyond, batches are streamed
RESAMPLES = 2000


@public
def probe(
    store: "Store | str | Path",
    *,
    last: Sequence[int] | str | None = None,
    without: Sequence[str] | None = None,
    atlas: "Atlas | str | Path | None" = None,
    label: str = "label",
    group: str | None = None,
    split: str | None = None,
    method: str | None = None,
    epochs: int = 10,
    seed: int = 0,
    progress: Progress | None = None,
) -> ProbeTable:
    """Train linear probes on the full embedding and on ablated ones, side by side.

    An ablated embedding has everything but some parts at its mean over the data. A constant changes nothing for a linear probe
    that has a bias, so the constant is left away; contributions are divided by ‖embedding‖, the full embedding is too.

    Args:
        store: a store whose images are labelled, or its folder.
        last: for each number k, a probe that sees only what the attention of the last k layers wrote: numbers, "1,4" or "none"; by default
            of 4, or of as many as the store holds.
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
        progress: told as it goes.

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
        ...     result = probe(folder + "/store", label="background", method="ridge", last=[1])
        >>> [row.name for row in result.rows], result.train + result.test
        (['full embedding', 'attention of the last layer only'], 120)
    """
    if method is not None and method not in METHODS:
        raise BadSpec(f"method={method!r} is not known. Type one of: {', '.join(METHODS)}")
    tell = progress or silent
    layers = _layer_counts(last)
    opened = store if isinstance(store, Store) else Store.open(store)
    features = _features(opened, layers, without or (), atlas, tell)
    images = probe_images(opened, label=label, group=group, split=split, seed=seed)
    parts = images.split
    trained_on = len(parts.train) + len(parts.validation)
    chosen = method or ("logistic" if trained_on * opened.manifest.embed <= IN_MEMORY else "sgd")
    rows: list[ProbeRow] = []
    for at, feature in enumerate(features):
        began = time.monotonic()

        def step(what: str, done: int, total: int | None, name: str = feature.name, at: int = at) -> None:
            tell(name, at * (total or 1) + done, len(features) * (total or 1))

        train, validation = (
            _batches(opened, feature, images.labels, places, seed) for places in (parts.train, parts.validation)
        )
        fitted = fit_probe(train, validation, len(images.classes), chosen, epochs=epochs, seed=seed, progress=step)
        right = _right(opened, feature, fitted, images)
        row = _row(feature.name, images, right, fitted, seed)
        rows.append(replace(row, trained=fitted.accuracy(train()), seconds=time.monotonic() - began))
    labels = images.labels[parts.train]
    commonest = float((images.labels[parts.test] == np.bincount(labels[labels >= 0]).argmax()).mean())
    notes = [*images.notes, *(f"Training on {row.name} stopped before its end." for row in rows if not row.converged)]
    counts = np.bincount(images.groups[parts.test] + 1, minlength=len(images.group_names) + 1)[1:].tolist()
    test_images = {name: count for name, count in zip(images.group_names, counts, strict=True) if count}
    return ProbeTable(
        tuple(rows), label, images.classes, trained_on, len(parts.test), test_images, parts.source, commonest,
        (*notes, *small_groups(test_images)),
    )  # fmt: skip


# ---- images


@dataclass(frozen=True)
class ProbeImages:
    """The labelled images of a store: class and group of each, and which are for training and which for the test.

    Attributes:
        labels: class of every image of the store, −1 without one.
        classes: names of the classes.
        groups: group of every image, −1 without one; the class where there are no groups.
        group_names: names of the groups.
        split: labelled images to train on, to choose the strength on, and to report on.
        notes: what must be said about them.
    """

    labels: Int64[np.ndarray, " image"] = field(repr=False)
    classes: tuple[str, ...]
    groups: Int64[np.ndarray, " image"] = field(repr=False)
    group_names: tuple[str, ...]
    split: Split
    notes: tuple[str, ...] = ()


def probe_images(
    store: Store, *, label: str = "label", group: str | None = None, split: str | None = None, seed: int = 0
) -> ProbeImages:
    """Read labels, groups and split of a store; see `probe` for the columns.

    Raises:
        BadInput: no labels, one class only, a column that is not there, no training or no test images.
    """
    labels, classes = _classes(store, label)
    parts = train_test_of(store, labels >= 0, split, seed)
    groups, names = text_codes(text_column(store, group or "group"))
    if group is not None and not names:
        raise BadInput(f"column {group!r} of {store.path} is empty or not there. Type one of: {columns_of(store)}")
    if not (groups[parts.test] >= 0).any():  # no test image has a group: the classes are the groups
        groups, names = labels, classes
    left_out = int((labels < 0).sum())
    notes = [f"{left_out:,} images without a label were left out."] if left_out else []
    unseen = [classes[c] for c in np.setdiff1d(labels[parts.test], labels[parts.train]).tolist()]
    if unseen:
        notes.append(f"Classes without a training image, always wrong: {few(unseen)}.")
    return ProbeImages(labels, classes, groups, names, parts, tuple(notes))


def _classes(store: Store, label: str) -> tuple[Int64[np.ndarray, " image"], tuple[str, ...]]:
    codes, names = text_codes(text_column(store, label))
    if len(names) < 2:
        raise BadInput(
            f"column {label!r} of {store.path} holds {'one class: ' + names[0] if names else 'no labels'}. Type label= with one "
            f"of: {columns_of(store)}; or index with labels=TABLE"
        )
    return codes, names


# ---- features


@dataclass(frozen=True)
class _Feature:
    """What a probe sees: only some heads, or all but some."""

    name: str
    heads: tuple[tuple[int, int], ...]
    only: bool


def _layer_counts(last: Sequence[int] | str | None) -> Sequence[int] | None:
    """Return numbers of layers as typed; None for the default."""
    if not isinstance(last, str):
        return last
    counts = [] if last == "none" else last.split(",")
    if not all(one.strip().isdecimal() for one in counts):
        raise BadSpec(f"last={last!r}: numbers of layers were expected. Type last='1,4' or last='none'")
    return [int(one) for one in counts]


def _features(
    store: Store,
    last: Sequence[int] | None,
    without: Sequence[str],
    atlas: "Atlas | str | Path | None",
    progress: Progress,
) -> list[_Feature]:
    manifest, heads = store.manifest, store.manifest.heads
    features = [_Feature("full embedding", (), only=False)]
    stored = [layer in manifest.layers for layer in range(manifest.depth)]
    at_end = stored[::-1].index(False) if False in stored else manifest.depth
    for k in [min(4, at_end)] * (at_end > 0) if last is None else last:
        layers = range(manifest.depth - k, manifest.depth)
        if k < 1 or any(layer not in manifest.layers for layer in layers):
            raise BadSpec(
                f"last={k!r}: the store holds layers {list(manifest.layers)} of {manifest.depth}. Type a number of 1 to "
                f"{at_end}"
            )
        which = f"last {k} layers" if k > 1 else "last layer"
        pairs = tuple((layer, head) for layer in layers for head in range(heads))
        features.append(_Feature(f"attention of the {which} only", pairs, only=True))
    named_heads: Atlas | None = None
    for spec in without:
        if ("role=" in spec or "words=" in spec) and named_heads is None:
            named_heads = atlas_of(store, lambda: model_of(store), atlas, progress)
        chosen = Selection.parse(spec, manifest.layers, heads, named_heads)
        if not chosen.heads or len(chosen) != len(chosen.heads):
            raise BadSpec(
                f"without={spec!r}: a probe without heads was expected. Type, for example: without='layer=0-3'"
            )
        features.append(_Feature(f"without {spec}", chosen.heads, only=False))
    return features


def _batches(
    store: Store, feature: _Feature, labels: Int64[np.ndarray, " image"], places: np.ndarray, seed: int
) -> Batches:
    """Return batches of a feature for some images, as often as they are asked for.

    Images are dealt to batches at random: collections are walked class by class, and a streamed probe would see one class at a
    time. Within a batch they are in the store's order, which reads faster.
    """
    mixed = np.random.default_rng(seed).permutation(places)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(mixed), AT_ONCE):
            some = np.sort(mixed[start : start + AT_ONCE])
            yield _read(store, feature, some), torch.from_numpy(labels[some])

    return batches


def _read(store: Store, feature: _Feature, places: np.ndarray) -> Float32[Tensor, "image embed"]:
    vectors = torch.zeros(len(places), store.manifest.embed) if feature.only else store.embeddings(places, unit=True)
    sign = 1.0 if feature.only else -1.0
    for layer, head in feature.heads:
        frame = store.basis.rows[store.layer_at(layer), head].float()
        vectors.addmm_(store.heads(layer, head, places).float(), frame, alpha=sign)
    if not bool(torch.isfinite(vectors).all()):
        raise BadInput(f"{store.path} holds numbers that are not finite. Type: clip-anatomy verify {store.path}")
    return vectors


# ---- accuracies


def _right(store: Store, feature: _Feature, fitted: LinearProbe, images: ProbeImages) -> Bool[np.ndarray, " image"]:
    """Tell whether each test image is right, in their order."""
    test = images.split.test
    right = [
        fitted.predict(_read(store, feature, some)).numpy() == images.labels[some]
        for some in np.array_split(test, -(-len(test) // AT_ONCE))
    ]
    return np.concatenate(right)


def _row(
    name: str,
    images: ProbeImages,
    right: Bool[np.ndarray, " image"],
    fitted: LinearProbe,
    seed: int,
) -> ProbeRow:
    labels, groups = images.labels[images.split.test], images.groups[images.split.test]
    present = np.unique(groups[groups >= 0])
    counts = np.array([(groups == g).sum() for g in present])
    hits = np.array([right[groups == g].sum() for g in present])
    # Images drawn again within each group: the number right is then binomial, no image need be drawn.
    random = np.random.default_rng(seed)
    again = random.binomial(counts, hits / counts, (RESAMPLES, len(present))) / counts
    whole = random.binomial(len(right), right.mean(), RESAMPLES) / len(right)
    by_group = {images.group_names[g]: float(h / n) for g, h, n in zip(present, hits, counts, strict=True)}
    worst = worst_group([*by_group.values()], counts.tolist())
    assert worst is not None
    return ProbeRow(
        name,
        float(right.mean()),
        _interval(whole),
        float(np.mean([right[labels == c].mean() for c in np.unique(labels)])),
        by_group,
        [*by_group.items()][worst],
        _interval(again[:, large_groups(counts.tolist())].min(1)),
        fitted.method,
        fitted.strength,
        fitted.converged,
    )


def _interval(drawn: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(drawn, (0.025, 0.975)).tolist()
    return low, high
