"""Linear probes: how much of a class can be read off an embedding, or off a part of it, by one hyperplane a class.

Three ways to the same kind of classifier. `logistic` is the usual protocol (Radford et al. 2021, appendix A.3: L-BFGS, strength
chosen on held-out images), on whitened features. `sgd` takes any number of images, a batch at a time. `ridge` is least squares on one-hot targets in
closed form from sums that add up over batches, so that one pass answers for every strength.
"""

import importlib
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from clip_anatomy.errors import BadInput, BadSpec, MissingExtra
from clip_anatomy.studies.least_squares import Batch, LinearProbe, Sums

__all__ = ["METHODS", "Batch", "Batches", "LinearProbe", "fit_probe"]

Batches = Callable[[], Iterable[Batch]]
"""Gives (features, classes) a batch at a time, as often as it is called."""

METHODS = ("logistic", "sgd", "ridge")
C = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)  # logistic: the larger, the freer
ALPHA = (1e-3, 1e-4, 1e-5)  # sgd: the smaller, the freer
LAMBDA = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # ridge: in units of the mean variance of a feature
STEPS = 1000
FLAT = 1e-5  # of the mean variance: directions flatter than this are not blown up by whitening


def fit_probe(
    train: Batches,
    held: Batches,
    classes: int,
    method: str = "logistic",
    *,
    epochs: int = 10,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> LinearProbe:
    """Train a probe; its regularisation is chosen on held-out images. Logistic and ridge are then trained on both together.

    Args:
        train: training images; for sgd in an order that mixes the classes.
        held: images to choose on, none of which is in `train` or in the test.
        classes: how many classes; labels are 0 … classes − 1.
        method: "logistic" (all features in memory), "sgd" or "ridge" (a batch at a time).
        epochs: passes of sgd.
        seed: of sgd's order.
        progress: called with (steps done, steps in all).

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
    sums = Sums.of_batches(train(), classes)
    if len(sums.present) < 2:
        raise BadInput(
            f"the {sums.count:,} training images are of {len(sums.present)} class: a probe tells two or more apart. Index images "
            "of other classes too, or type another --label"
        )
    plan = _Plan(classes, epochs, seed, progress or (lambda _done, _of: None))
    routes = {"logistic": _logistic, "sgd": _sgd, "ridge": _ridge}
    return routes[method](train, held, sums, plan)


@dataclass(frozen=True)
class _Plan:
    """How to train."""

    classes: int
    epochs: int
    seed: int
    tell: Callable[[int, int], None]


@dataclass(frozen=True)
class _Frame:
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
    def whitening(sums: Sums) -> "_Frame":
        """From the covariance of the training features."""
        values, vectors = torch.linalg.eigh(sums.covariance)
        floor = FLAT * values.clamp(min=0).mean().clamp(min=1e-300)
        return _Frame(sums.mean, vectors / (values.clamp(min=0) + floor).sqrt(), sums.present)

    def of(self, features: Float[Tensor, "image embed"]) -> np.ndarray:
        return ((features.double() - self.mean) @ self.rows).numpy()

    def folded(self, rows: np.ndarray, bias: np.ndarray, present: Sequence[int], classes: int) -> tuple[Tensor, Tensor]:
        """Scikit-learn's coefficients on these coordinates as one row a class on the features as they are."""
        if len(rows) == 1:  # two classes: one row that points to the second
            rows, bias = np.concatenate([-rows / 2, rows / 2]), np.concatenate([-bias / 2, bias / 2])
        weight = torch.zeros(classes, len(self.mean), dtype=torch.float64)
        whole = torch.full((classes,), -torch.inf, dtype=torch.float64)
        weight[list(present)] = torch.from_numpy(rows).double() @ self.rows.T
        whole[list(present)] = torch.from_numpy(bias).double() - weight[list(present)] @ self.mean
        return weight, whole


def _logistic(train: Batches, held: Batches, sums: Sums, plan: _Plan) -> LinearProbe:
    linear = _sklearn()
    frame = _Frame.whitening(sums)
    x, y = _gathered(train, frame)
    z, t = _gathered(held, frame)
    found: list[tuple[float, float]] = []
    model = linear.LogisticRegression(max_iter=STEPS, warm_start=True, tol=1e-4)
    for at, strength in enumerate(C if len(t) else (1.0,)):
        model.set_params(C=strength)
        _fitted(model, x, y)
        found.append((float((model.predict(z) == t).mean()) if len(t) else float("nan"), strength))
        plan.tell(at + 1, len(C) + 1)
    best, strength = max(found, key=lambda one: (one[0], -one[1])) if len(t) else found[0]
    model.set_params(C=strength, warm_start=False)  # the held-out images may bring classes that training has not
    done = _fitted(model, np.concatenate([x, z]), np.concatenate([y, t]))
    plan.tell(len(C) + 1, len(C) + 1)
    weight, bias = frame.folded(model.coef_, model.intercept_, [int(c) for c in model.classes_], plan.classes)
    return LinearProbe(weight, bias, "logistic", strength, best, done)


def _sgd(train: Batches, held: Batches, sums: Sums, plan: _Plan) -> LinearProbe:
    linear = _sklearn()
    if plan.epochs < 1:
        raise BadInput(f"epochs={plan.epochs}: at least one pass. Type --epochs 10")
    models = {a: linear.SGDClassifier(loss="log_loss", alpha=a, average=True, random_state=plan.seed) for a in ALPHA}
    order = np.random.default_rng(plan.seed)
    frame, present = _Frame.whitening(sums), sums.present
    for epoch in range(plan.epochs):
        for features, labels in train():
            mixed = order.permutation(len(labels))
            x, y = frame.of(features)[mixed], labels.numpy()[mixed]
            for model in models.values():
                model.partial_fit(x, y, classes=np.array(present))
        plan.tell(epoch + 1, plan.epochs)
    probes = [
        LinearProbe(*frame.folded(model.coef_, model.intercept_, present, plan.classes), "sgd", a)
        for a, model in models.items()
    ]
    found = [replace(probe, held=probe.accuracy(held())) for probe in probes]
    return max(found, key=lambda one: one.held if one.held == one.held else 0.0)


def _ridge(train: Batches, held: Batches, sums: Sums, plan: _Plan) -> LinearProbe:
    probes = sums.ridge(LAMBDA)
    scores = [probe.accuracy(held()) for probe in probes]
    plan.tell(1, 2)
    best = max(range(len(LAMBDA)), key=lambda at: scores[at] if scores[at] == scores[at] else 0.0)
    rest = Sums.of_batches(held(), plan.classes, sums.shift)
    whole = sums.merge(rest) if rest.count else sums
    plan.tell(2, 2)
    return replace(whole.ridge([LAMBDA[best]])[0], held=scores[best])


def _gathered(batches: Batches, frame: _Frame) -> tuple[np.ndarray, np.ndarray]:
    pieces = [(frame.of(features).astype(np.float32), labels.numpy()) for features, labels in batches()]
    if not pieces:
        return np.zeros((0, frame.rows.shape[1]), np.float32), np.zeros(0, np.int64)
    return np.concatenate([x for x, _ in pieces]), np.concatenate([y for _, y in pieces])


def _fitted(model: Any, x: np.ndarray, y: np.ndarray) -> bool:
    """Fit; False if it stopped before its end."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(x, y)
    return not any(issubclass(one.category, ConvergenceWarning) for one in said)


def _sklearn() -> Any:
    try:
        return importlib.import_module("sklearn.linear_model")
    except ImportError as error:
        raise MissingExtra("scikit-learn", "measure") from error
