"""Linear probes: how much of a class can be read off an embedding, or off a part of it, by one hyperplane a class.

Three methods train the same kind of classifier. `logistic` is the usual protocol (Radford et al. 2021, appendix A.3: L-BFGS, strength
chosen on validation images), on whitened features. `sgd` takes any number of images, a batch at a time. `ridge` is least squares on
one-hot targets in closed form from sums that add up over batches, so that one pass answers for every strength.
"""

import importlib
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from clip_anatomy.errors import BadInput, BadSpec, MissingExtra
from clip_anatomy.progress import Progress, silent

__all__ = ["METHODS", "Batch", "Batches", "ClassSums", "LinearProbe", "fit_probe"]

Batch = tuple[Tensor, Tensor]
"""Features [image, embed] and classes [image]. Without shapes in the type: batches of one stream may differ in length."""

Batches = Callable[[], Iterable[Batch]]
"""Gives (features, classes) a batch at a time, as often as it is called."""

METHODS = ("logistic", "sgd", "ridge")
C = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)  # logistic: the larger, the freer
ALPHA = (1e-3, 1e-4, 1e-5)  # sgd: the smaller, the freer
LAMBDA = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # ridge: in units of the mean variance of a feature
STEPS = 1000
FLAT = 1e-5  # of the mean variance: directions flatter than this are not blown up by whitening


@dataclass(frozen=True)
class LinearProbe:
    """A trained linear classifier on features as they come.

    Attributes:
        weight: one row a class.
        bias: one number a class; −∞ for classes that training never saw.
        method: how it was trained.
        strength: of the regularisation that was chosen: C, alpha or lambda.
        validation: accuracy on the validation images that it was chosen on.
        converged: whether training came to its end.
    """

    weight: Float64[Tensor, "text embed"]
    bias: Float64[Tensor, " text"]
    method: str
    strength: float
    validation: float = float("nan")
    converged: bool = True

    def predict(self, features: Float[Tensor, "image embed"]) -> Int64[Tensor, " image"]:
        """Return the class of each image."""
        return (features.double() @ self.weight.T + self.bias).argmax(1)

    def accuracy(self, batches: Iterable[Batch]) -> float:
        """Return the share of images whose class is right; NaN without any."""
        right = total = 0
        for features, labels in batches:
            right += int((self.predict(features) == labels).sum())
            total += len(labels)
        return right / total if total else float("nan")


@dataclass(frozen=True)
class ClassSums:
    """What least squares needs of any number of images; sums of two sets are the sums of both.

    Attributes:
        shift: taken from every feature first, for accuracy; the same in all that are merged.
        per_class: images of each class.
        total: Σ x of each class.
        square: Σ x xᵀ.
    """

    shift: Float64[Tensor, " embed"]
    per_class: Float64[Tensor, " text"]
    total: Float64[Tensor, "text embed"]
    square: Float64[Tensor, "embed embed"]

    @staticmethod
    def of_batches(
        batches: Iterable[Batch], classes: int, shift: Float64[Tensor, " embed"] | None = None
    ) -> "ClassSums":
        """Add up batches.

        Args:
            batches: (features, classes) a batch at a time.
            classes: how many classes; labels are 0 … classes − 1.
            shift: taken from every feature; by default the mean of the first batch.

        Raises:
            BadInput: features that are not finite, labels beyond the classes.
        """
        per_class = torch.zeros(classes, dtype=torch.float64)
        total = square = torch.zeros(0, dtype=torch.float64)
        for features, labels in batches:
            if not bool(torch.isfinite(features).all()):
                raise BadInput("some features are not finite. Index again with a model in float32")
            if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
                low, high = int(labels.min()), int(labels.max())
                raise BadInput(f"labels {low}..{high} for {classes} classes: label images 0..{classes - 1}")
            shift = features.double().mean(0) if shift is None else shift
            if not len(total):
                total = torch.zeros(classes, len(shift), dtype=torch.float64)
                square = torch.zeros(len(shift), len(shift), dtype=torch.float64)
            x = features.double() - shift
            per_class += torch.bincount(labels, minlength=classes)
            total.index_add_(0, labels, x)
            square += x.T @ x
        if shift is None:
            raise BadInput("no images to train on: give at least one batch")
        if not len(total):
            total, square = torch.zeros(classes, len(shift)).double(), torch.zeros(len(shift), len(shift)).double()
        return ClassSums(shift, per_class, total, square)

    @property
    def count(self) -> int:
        """Number of images."""
        return int(self.per_class.sum())

    @property
    def present(self) -> tuple[int, ...]:
        """Classes that have images."""
        return tuple(torch.nonzero(self.per_class).flatten().tolist())

    @property
    def mean(self) -> Float64[Tensor, " embed"]:
        """Mean of the features."""
        return self.shift + self.total.sum(0) / max(self.count, 1)

    @property
    def covariance(self) -> Float64[Tensor, "embed embed"]:
        """Covariance of the features (over n)."""
        off = self.total.sum(0) / max(self.count, 1)
        return self.square / max(self.count, 1) - off[:, None] * off

    def merge(self, other: "ClassSums") -> "ClassSums":
        """Add up both sets of images.

        Raises:
            BadInput: they were taken with different shifts.
        """
        if not torch.equal(self.shift, other.shift):
            raise BadInput("sums with different shifts do not merge. Take both with the same `shift`")
        return ClassSums(
            self.shift, self.per_class + other.per_class, self.total + other.total, self.square + other.square
        )

    def ridge(self, strengths: Sequence[float]) -> list[LinearProbe]:
        """Solve least squares on one-hot targets, for several strengths at the cost of one decomposition.

        Args:
            strengths: in units of the mean variance of a feature.

        Returns:
            One probe per strength.
        """
        n = self.count
        mean = self.total.sum(0) / n
        values, vectors = torch.linalg.eigh(self.covariance)
        towards = (self.total / n - (self.per_class / n)[:, None] * mean) @ vectors  # covariance of target and feature
        unit = values.clamp(min=0).mean().clamp(min=1e-300)
        probes: list[LinearProbe] = []
        for strength in strengths:
            weight = (towards / (values.clamp(min=0) + strength * unit)) @ vectors.T
            bias = self.per_class / n - weight @ (mean + self.shift)
            bias = torch.where(self.per_class > 0, bias, torch.full_like(bias, -torch.inf))
            probes.append(LinearProbe(weight, bias, "ridge", strength))
        return probes


# ---- training


def fit_probe(
    train: Batches,
    validation: Batches,
    classes: int,
    method: str = "logistic",
    *,
    epochs: int = 10,
    seed: int = 0,
    progress: Progress | None = None,
) -> LinearProbe:
    """Train a probe; its regularisation is chosen on validation images. Logistic and ridge are then trained on both together.

    Args:
        train: training images; for sgd in an order that mixes the classes.
        validation: images to choose on, none of which is in `train` or in the test.
        classes: how many classes; labels are 0 … classes − 1.
        method: "logistic" (all features in memory), "sgd" or "ridge" (a batch at a time).
        epochs: passes of sgd.
        seed: of sgd's order.
        progress: told as it goes.

    Returns:
        LinearProbe.

    Raises:
        BadSpec: unknown method.
        BadInput: fewer than two classes in the training images, or features that are not finite.
        MissingExtra: scikit-learn is not installed.

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [0.1, 1.2], [1.0, 0.0], [1.3, 0.1]])
        >>> y = torch.tensor([0, 0, 1, 1])
        >>> probe = fit_probe(lambda: [(x, y)], lambda: [(x, y)], 2, "ridge")
        >>> probe.predict(torch.tensor([[0.2, 0.9], [0.9, 0.2]])).tolist()
        [0, 1]
    """
    if method not in METHODS:
        raise BadSpec(f"method {method!r} is not known. Type one of: {', '.join(METHODS)}")
    sums = ClassSums.of_batches(train(), classes)
    if len(sums.present) < 2:
        raise BadInput(
            f"the {sums.count:,} training images are of {len(sums.present)} class: a probe tells two or more apart. Index images "
            "of other classes too, or type another label="
        )
    settings = _Settings(classes, epochs, seed, progress or silent)
    routes = {"logistic": _logistic, "sgd": _sgd, "ridge": _ridge}
    return routes[method](train, validation, sums, settings)


@dataclass(frozen=True)
class _Settings:
    """How to train."""

    classes: int
    epochs: int
    seed: int
    tell: Progress


@dataclass(frozen=True)
class _Whitening:
    """Coordinates in which training is well-conditioned: centred and whitened.

    Scaling each feature by itself, as is usual, trains ten times slower and is worse where it matters here: what a few heads wrote
    is nearly flat in most directions (docs/datasets.md has the figures).

    Attributes:
        mean: of the training features.
        rows: from features to coordinates.
        present: classes of the training images.
    """

    mean: Float64[Tensor, " embed"]
    rows: Float64[Tensor, "embed d"]
    present: tuple[int, ...]

    @staticmethod
    def of_sums(sums: ClassSums) -> "_Whitening":
        """From the covariance of the training features."""
        values, vectors = torch.linalg.eigh(sums.covariance)
        floor = FLAT * values.clamp(min=0).mean().clamp(min=1e-300)
        return _Whitening(sums.mean, vectors / (values.clamp(min=0) + floor).sqrt(), sums.present)

    def of(self, features: Float[Tensor, "image embed"]) -> np.ndarray:
        return ((features.double() - self.mean) @ self.rows).numpy()

    def folded(self, rows: np.ndarray, bias: np.ndarray, present: Sequence[int], classes: int) -> tuple[Tensor, Tensor]:
        """Fold scikit-learn's coefficients on these coordinates into one row a class on the features as they are."""
        if len(rows) == 1:  # two classes: one row that points to the second
            rows, bias = np.concatenate([-rows / 2, rows / 2]), np.concatenate([-bias / 2, bias / 2])
        weight = torch.zeros(classes, len(self.mean), dtype=torch.float64)
        whole = torch.full((classes,), -torch.inf, dtype=torch.float64)
        weight[list(present)] = torch.from_numpy(rows).double() @ self.rows.T
        whole[list(present)] = torch.from_numpy(bias).double() - weight[list(present)] @ self.mean
        return weight, whole


def _logistic(train: Batches, validation: Batches, sums: ClassSums, settings: _Settings) -> LinearProbe:
    linear = _sklearn()
    frame = _Whitening.of_sums(sums)
    x, y = _gathered(train, frame)
    z, t = _gathered(validation, frame)
    scores: list[tuple[float, float]] = []
    model = linear.LogisticRegression(max_iter=STEPS, warm_start=True, tol=1e-4)
    for at, strength in enumerate(C if len(t) else (1.0,)):
        model.set_params(C=strength)
        _fitted(model, x, y)
        scores.append((float((model.predict(z) == t).mean()) if len(t) else float("nan"), strength))
        settings.tell("training", at + 1, len(C) + 1)
    best, strength = max(scores, key=lambda one: (one[0], -one[1])) if len(t) else scores[0]
    model.set_params(C=strength, warm_start=False)  # the validation images may bring classes that training has not
    done = _fitted(model, np.concatenate([x, z]), np.concatenate([y, t]))
    settings.tell("training", len(C) + 1, len(C) + 1)
    weight, bias = frame.folded(model.coef_, model.intercept_, [int(c) for c in model.classes_], settings.classes)
    return LinearProbe(weight, bias, "logistic", strength, best, done)


def _sgd(train: Batches, validation: Batches, sums: ClassSums, settings: _Settings) -> LinearProbe:
    linear = _sklearn()
    if settings.epochs < 1:
        raise BadInput(f"epochs={settings.epochs}: at least one pass. Type epochs=10")
    models = {
        a: linear.SGDClassifier(loss="log_loss", alpha=a, average=True, random_state=settings.seed) for a in ALPHA
    }
    order = np.random.default_rng(settings.seed)
    frame, present = _Whitening.of_sums(sums), sums.present
    for epoch in range(settings.epochs):
        for features, labels in train():
            mixed = order.permutation(len(labels))
            x, y = frame.of(features)[mixed], labels.numpy()[mixed]
            for model in models.values():
                model.partial_fit(x, y, classes=np.array(present))
        settings.tell("training", epoch + 1, settings.epochs)
    probes = [
        LinearProbe(*frame.folded(model.coef_, model.intercept_, present, settings.classes), "sgd", a)
        for a, model in models.items()
    ]
    measured = [replace(probe, validation=probe.accuracy(validation())) for probe in probes]
    return max(measured, key=lambda one: one.validation if one.validation == one.validation else 0.0)


def _ridge(train: Batches, validation: Batches, sums: ClassSums, settings: _Settings) -> LinearProbe:
    probes = sums.ridge(LAMBDA)
    scores = [probe.accuracy(validation()) for probe in probes]
    settings.tell("training", 1, 2)
    best = max(range(len(LAMBDA)), key=lambda at: scores[at] if scores[at] == scores[at] else 0.0)
    rest = ClassSums.of_batches(validation(), settings.classes, sums.shift)
    whole = sums.merge(rest) if rest.count else sums
    settings.tell("training", 2, 2)
    return replace(whole.ridge([LAMBDA[best]])[0], validation=scores[best])


def _gathered(batches: Batches, frame: _Whitening) -> tuple[np.ndarray, np.ndarray]:
    pieces = [(frame.of(features).astype(np.float32), labels.numpy()) for features, labels in batches()]
    if not pieces:
        return np.zeros((0, frame.rows.shape[1]), np.float32), np.zeros(0, np.int64)
    return np.concatenate([x for x, _ in pieces]), np.concatenate([y for _, y in pieces])


def _fitted(model: Any, x: np.ndarray, y: np.ndarray) -> bool:
    """Fit; False if it stopped before its end."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(x, y)
    return not any(issubclass(one.category, ConvergenceWarning) for one in raised)


def _sklearn() -> Any:
    try:
        return importlib.import_module("sklearn.linear_model")
    except ImportError as error:
        raise MissingExtra("scikit-learn", "measure") from error
