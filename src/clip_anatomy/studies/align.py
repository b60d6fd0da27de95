"""A linear map from the joint space to any other space: recordings of a brain, features of a model without texts.

    y ≈ W x + b, ridge regression; penalty per channel by generalised cross-validation inside each training fold (never seen: the fold
    that is predicted), as is usual for encoding models (Naselaris et al., NeuroImage 2011).

A row of W is a direction of the joint space, so everything that takes a text's embedding takes a channel: `heatmap`, `concepts`, `search`.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from zipfile import ZipFile, is_zipfile

import numpy as np
import torch
from jaxtyping import Float64
from numpy.typing import NDArray
from torch import Tensor

from clip_anatomy import number_ranges
from clip_anatomy.errors import BadInput, BadSpec, MissingExtra, reading
from clip_anatomy.files import path_of, read_json, read_safetensors
from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.load import load_recorded
from clip_anatomy.loading.model_origin import Origin
from clip_anatomy.objects import is_object_url
from clip_anatomy.progress import Progress, silent
from clip_anatomy.public_functions import public
from clip_anatomy.results import Result, text_table
from clip_anatomy.store.store import Store

__all__ = ["Alignment", "align"]

SCHEMA = "clip-anatomy/align/1"
NUMBERS, MAP, MAP_FORMAT = "align.json", "align.safetensors", "clip-anatomy align 1"
PENALTIES = np.logspace(-3, 6, 19)
FALSE_DISCOVERIES = 0.05
LARGEST = 2**32  # bytes of a packed file of recordings
HALVES = 20  # random halves of the repeats, for the noise ceiling


@public
@dataclass(frozen=True, repr=False)
class Alignment(Result):
    """Hold a linear map and how well it predicts what it has not seen.

    Attributes:
        channels: what each channel is called.
        weight: rows are directions of the space that was aligned from (the joint space).
        intercept: b.
        r: correlation of each channel with its prediction, over stimuli held out.
        p: share of shuffles of the stimuli with a correlation as large.
        ceiling: the largest correlation that the noise allows; None without repeats.
        chance: the 95th percentile of r over shuffles.
        stimuli: how many.
        folds: of the cross-validation.
        explained: R² of all channels together, held out: 1 − Σ (y − ŷ)² / Σ (y − mean of the training folds)².
        cosine: of each held-out row with its prediction, on the mean: how near a predicted embedding is.
        digest: of the model whose embeddings were fitted; "" where these came from no store.
        space: where the model lies whose embeddings are predicted; None for recordings.
    """

    presenter: ClassVar[str] = "alignment_figure"

    channels: tuple[str, ...]
    weight: Float64[Tensor, "channel embed"]
    intercept: Float64[Tensor, " channel"]
    r: Float64[Tensor, " channel"]
    p: Float64[Tensor, " channel"]
    ceiling: Float64[Tensor, " channel"] | None
    chance: Float64[Tensor, " channel"]
    stimuli: int
    folds: int
    explained: float
    cosine: float
    digest: str = ""
    space: Origin | None = None

    @staticmethod
    def load(folder: str | Path) -> "Alignment":
        """Read what `save` wrote: the map as it was, figures to six places.

        Raises:
            BadInput: no such folder, or not of an alignment.
        """
        path, again = path_of(folder), "Make it with align(STORE, RECORDINGS).save(FOLDER)"
        with reading(path, again):
            numbers, rows = read_json(path / NUMBERS, again), []
            tensors, _ = read_safetensors(path / MAP, MAP_FORMAT, "align(STORE, RECORDINGS).save(FOLDER)")
            rows, places = numbers["channels"], numbers.get("space")
            figures = {name: torch.tensor([row[name] for row in rows]).double() for name in ("r", "p", "chance")}
            ceiling = torch.tensor([row["ceiling"] for row in rows]).double() if "ceiling" in rows[0] else None
            return Alignment(
                tuple(row["channel"] for row in rows),
                tensors["weight"],
                tensors["intercept"],
                **figures,
                ceiling=ceiling,
                **{name: numbers[name] for name in ("stimuli", "folds", "explained", "cosine")},
                digest=numbers.get("digest", ""),
                space=None if places is None else Origin.read(places, path, places["spec"]),
            )

    def read(self, model: Clip, *, device: str = "auto") -> Clip:
        """Read an image model through the map, with the texts of the CLIP whose store it was fitted on: `Clip.read_through`.

        Raises:
            BadInput: another model than the one whose embeddings were fitted, or a map to something else than a CLIP's embeddings.
        """
        if self.digest and self.digest != model.digest:
            raise BadInput(f"the map was fitted on embeddings of other weights than those of {model.name}. Type the model of its first store")  # fmt: skip
        if self.space is None:
            raise BadInput(
                "this map leads to no CLIP that could be opened. Type align(STORE_OF_THIS_MODEL, STORE_OF_A_CLIP)"
            )
        space = self.space
        return model.read_through(
            self, load_recorded(None, space.spec_anywhere, weights=space.weights or None, device=device)
        )

    def predict(self, x: Tensor) -> Float64[Tensor, "stimulus channel"]:
        """Predict the channels from rows of the space that was aligned from.

        Raises:
            BadInput: rows of another width.
        """
        if x.ndim != 2 or x.shape[1] != self.weight.shape[1]:
            raise BadInput(
                f"rows are {list(x.shape)}; [stimulus, {self.weight.shape[1]}] were expected, of the space that was aligned from"
            )
        return x.double().cpu() @ self.weight.T + self.intercept

    @property
    def predicted(self) -> NDArray[np.bool_]:
        """Which channels are predicted, at a false discovery rate of 5 % (Benjamini and Hochberg)."""
        order = np.argsort(self.p.numpy(), kind="stable")
        passed = self.p.numpy()[order] <= FALSE_DISCOVERIES * np.arange(1, len(order) + 1) / len(order)
        is_predicted = np.zeros(len(order), dtype=bool)
        is_predicted[order[: int(passed.nonzero()[0].max(initial=-1)) + 1]] = True
        return is_predicted

    def to_dict(self) -> dict[str, Any]:
        """Return every channel's figures, ready for JSON; the map itself is in `weight`."""
        named = zip(
            self.channels, self.r.tolist(), self.p.tolist(), self.chance.tolist(), self.predicted.tolist(), strict=True
        )
        rows: list[dict[str, Any]] = [
            {"channel": name, "r": round(r, 6), "p": round(p, 6), "chance": round(chance, 6), "predicted": good}
            for name, r, p, chance, good in named
        ]
        if self.ceiling is not None:
            for row, ceiling in zip(rows, self.ceiling.tolist(), strict=True):
                row["ceiling"] = round(ceiling, 6)
        return {
            "schema": SCHEMA,
            "stimuli": self.stimuli,
            "folds": self.folds,
            "explained": round(self.explained, 6),
            "cosine": round(self.cosine, 6),
            "channels": rows,
        }

    def summary(self) -> str:
        """Return the channels that are predicted best, as a table."""
        order = self.r.argsort(descending=True)[:20].tolist()
        rows = [
            (self.channels[at], f"{self.r[at]:.2f}", f"{self.chance[at]:.2f}", f"{self.p[at]:.3f}")
            + (() if self.ceiling is None else (f"{self.ceiling[at]:.2f}",))
            for at in order
        ]
        titles = ("channel", ">r", ">chance", ">p") + (() if self.ceiling is None else (">ceiling",))
        many = int(self.predicted.sum())
        title = (
            f"{many} of {len(self.channels)} channels predicted (false discoveries 5 %); {self.stimuli:,} stimuli, {self.folds} folds; "
            f"median r {float(self.r.median()):.2f}, R² {self.explained:.2f}, cosine {self.cosine:.2f}"
        )
        return text_table(titles, rows, title=title)


@public
def align(
    store: "Store | Tensor | NDArray[Any] | str | Path",
    recordings: "Store | Tensor | NDArray[Any] | str | Path",
    *,
    folds: int = 5,
    permutations: int = 1000,
    seed: int = 0,
    channels: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Alignment:
    """Fit recordings of stimuli by embeddings of the same stimuli.

    Args:
        store: embeddings of the stimuli: a store (unit length, in the order of its rows), or rows [stimulus, embed] of any space.
        recordings: [stimulus, channel] in the same order, or [repeat, stimulus, channel]; a tensor, an array, a .npy file, or a
            .npz file with `recordings` and, if the order is another one, `ids` of the store's images. Or another model's store (or its
            folder) of the same pictures: then embeddings of `store` are as long as the model makes them, and `Clip.read_through` takes the map.
        folds: of the cross-validation.
        permutations: shuffles for p and for the chance level; 0 for neither.
        seed: of folds and shuffles.
        channels: their names.
        progress: told as it goes.

    Raises:
        BadInput: shapes that do not fit, numbers that are not finite, a channel that never changes.
        BadSpec: fewer than two folds, or more than there are stimuli for.
        MissingExtra: scikit-learn is not installed.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(200, 8, generator=generator)
        >>> y = x @ torch.randn(8, 3, generator=generator) + 0.1 * torch.randn(200, 3, generator=generator)
        >>> result = align(x, y, permutations=99)
        >>> bool((result.r > 0.98).all()), result.predicted.tolist()
        (True, [True, True, True])
    """
    tell = progress or silent
    store, recordings = _opened(store), _opened(recordings)
    x, repeats, names = _given(store, recordings)
    y = repeats.mean(0)
    if not 2 <= folds <= len(x) // 4:
        raise BadSpec(f"folds={folds} for {len(x)} stimuli: 2 to {max(2, len(x) // 4)} were expected. Type: folds=5")
    names = tuple(channels) if channels is not None else names or tuple(f"channel {at}" for at in range(y.shape[1]))
    if len(names) != y.shape[1]:
        raise BadInput(f"{len(names)} names for {y.shape[1]} channels. Type one name for each")
    number_ranges.whole("permutations", permutations, 0, 10**7)
    rng = np.random.default_rng(seed)
    fold = rng.permutation(np.arange(len(x)) % folds)
    predicted, true = np.empty_like(y), np.empty_like(y)
    left, around, cosines = 0.0, 0.0, np.empty(len(x))
    for at in range(folds):
        tell("cross-validation", at, folds)
        held = fold == at
        # Centred within each fold: the mean of the training stimuli is off the held-out ones' in the other direction.
        predictions = _ridge(x[~held], y[~held]).predict(x[held]).reshape(-1, y.shape[1])
        left += float(np.square(y[held] - predictions).sum())
        around += float(np.square(y[held] - y[~held].mean(0)).sum())
        cosines[held] = (_unit(predictions.T) * _unit(y[held].T)).sum(0)
        predicted[held] = _centred(predictions)
        true[held] = _centred(y[held])
    a, b = _unit(predicted), _unit(true)
    r = (a * b).sum(0)
    shuffled = np.empty((permutations, len(r)))
    for at in range(permutations):
        order = np.lexsort((rng.random(len(x)), fold)), np.argsort(fold, kind="stable")
        mixed = np.empty_like(b)
        mixed[order[1]] = b[order[0]]  # within each fold
        shuffled[at] = (a * mixed).sum(0)
        tell("shuffling stimuli", at + 1, permutations)
    p = (1 + (shuffled >= r).sum(0)) / (1 + permutations)
    chance = np.quantile(shuffled, 0.95, axis=0) if permutations else np.zeros_like(r)
    whole = _ridge(x, y)
    return Alignment(
        names,
        torch.from_numpy(np.atleast_2d(whole.coef_).copy()),
        torch.from_numpy(np.atleast_1d(whole.intercept_).copy()),
        torch.from_numpy(r),
        torch.from_numpy(p),
        _ceiling(repeats, rng),
        torch.from_numpy(chance),
        len(x),
        folds,
        1 - left / around,
        float(cosines.mean()),
        store.manifest.digest if isinstance(store, Store) else "",
        None
        if not isinstance(recordings, Store)
        else Origin.read(recordings.manifest.origin, recordings.path, recordings.manifest.model),
    )


def _opened(given: Any) -> Any:
    """Open a store by its folder; anything else is left as it is."""
    is_folder = isinstance(given, str | Path) and (path_of(given).is_dir() or is_object_url(given))
    return Store.open(given) if is_folder else given


def _ridge(x: NDArray[np.float64], y: NDArray[np.float64]) -> Any:
    try:
        linear = importlib.import_module("sklearn.linear_model")
    except ImportError as error:
        raise MissingExtra("scikit-learn", "measure") from error
    return linear.RidgeCV(PENALTIES, alpha_per_target=y.shape[1] > 1).fit(x, y if y.shape[1] > 1 else y[:, 0])


def _ceiling(repeats: NDArray[np.float64], rng: np.random.Generator) -> Float64[Tensor, " channel"] | None:
    """Estimate √reliability of the mean over repeats: split-half correlation, extended by Spearman and Brown's formula."""
    if len(repeats) < 2:
        return None
    halves: list[NDArray[np.float64]] = []
    for _ in range(HALVES):
        order = rng.permutation(len(repeats))
        one, other = (repeats[some].mean(0) for some in (order[: len(order) // 2], order[len(order) // 2 :]))
        halves.append((_unit(_centred(one)) * _unit(_centred(other))).sum(0))
    half = np.clip(np.mean(halves, axis=0), 0, 1)
    return torch.from_numpy(np.sqrt(2 * half / (1 + half)))


def _given(store: Any, recordings: Any) -> tuple[NDArray[np.float64], NDArray[np.float64], tuple[str, ...]]:
    names: tuple[str, ...] = ()
    opened = Store.open(store) if isinstance(store, str | Path) else store if isinstance(store, Store) else None
    of_model = isinstance(recordings, Store)
    x = _array(store if opened is None else opened.embeddings(unit=not of_model), "embeddings", (2,))
    ids: list[str] | None = None
    if isinstance(recordings, Store):
        ids, recordings = recordings.column("id"), recordings.embeddings(unit=True)
    if isinstance(recordings, str | Path):
        recordings, ids, names = _read(path_of(recordings))
    y = _array(recordings, "recordings", (2, 3))
    y = y if y.ndim == 3 else y[None]
    if ids is not None and not (of_model and opened is None):
        x = _in_order(x, ids, opened)
    if len(x) != y.shape[1]:
        raise BadInput(f"{len(x)} embeddings for {y.shape[1]} stimuli. Give one row for each, in one order")
    if still := [at for at, spread in enumerate(y.mean(0).std(0)) if spread == 0]:
        raise BadInput(f"channel {still[0]} has one value for all stimuli: nothing can be predicted. Leave it out")
    return x, y, names


def _read(path: Path) -> tuple[NDArray[Any], list[str] | None, tuple[str, ...]]:
    """Read recordings, ids of their stimuli and names of their channels, as far as a file has them."""
    with reading(path, "Save [stimulus, channel] with numpy.save, or numpy.savez(file, recordings=..., ids=...)"):
        if is_zipfile(path):
            with ZipFile(path) as packed:
                size = sum(one.file_size for one in packed.infolist())
            if size > LARGEST:
                raise ValueError(f"{size:,} bytes when unpacked, {LARGEST:,} are read")
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded, None, ()
        ids = [str(one) for one in loaded["ids"]] if "ids" in loaded else None
        return loaded["recordings"], ids, tuple(str(one) for one in loaded["channels"]) if "channels" in loaded else ()


def _in_order(x: NDArray[np.float64], ids: list[str], store: Store | None) -> NDArray[np.float64]:
    if store is None:
        raise BadInput("recordings with ids go with a store. Type: align(STORE, 'recordings.npz')")
    places = {row.id: row.index for row in store.rows()}
    if missing := [one for one in ids if one not in places]:
        raise BadInput(f"{missing[0]!r} (and {len(missing) - 1} more) is not in {store.path}. Type ids of Store.rows()")
    return x[[places[one] for one in ids]]


def _array(given: Any, what: str, axes: tuple[int, ...]) -> NDArray[np.float64]:
    values = given.detach().cpu().double().numpy() if isinstance(given, Tensor) else np.asarray(given)
    if values.dtype.kind not in "fiu" or values.ndim not in axes or not values.size:
        shape = "[stimulus, channel] or [repeat, stimulus, channel]" if 3 in axes else "[stimulus, embed]"
        raise BadInput(f"{what} are {values.dtype} {list(values.shape)}; numbers {shape} were expected")
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise BadInput(
            f"{what} hold {int((~np.isfinite(values)).sum())} values that are NaN or infinite. Leave those stimuli out"
        )
    return values


def _centred(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return x - x.mean(0)


def _unit(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return x / np.maximum(np.linalg.norm(x, axis=0), 1e-300)
