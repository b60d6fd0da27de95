"""Sparse concepts: an embedding as a non-negative sum of few texts (SpLiCE: Bhalla et al., NeurIPS 2024, §4).

    z = unit(unit(embedding) − μ_image)      C: rows unit(unit(text) − μ_text), so that the modality gap is gone on both sides
    w = argmin ‖z − w C‖² + penalty · ‖w‖₁,  w ≥ 0
    reconstruction = unit(unit(w C) + μ_image)

With a number of texts instead of a penalty: greedy non-negative orthogonal matching pursuit (the best text, then all weights anew).
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn.functional import normalize

from clip_anatomy.data.picture_batches import Failed, NamedPicture, Pictures, embedded_pictures
from clip_anatomy.errors import BadInput, BadSpec, MissingExtra
from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.text_cache import embed_texts
from clip_anatomy.naming.bundled_pools import pool_of
from clip_anatomy.naming.pool import Pool
from clip_anatomy.number_ranges import within
from clip_anatomy.progress import Progress, silent
from clip_anatomy.public_functions import public
from clip_anatomy.results import Result, text_table
from clip_anatomy.store.store import Store

__all__ = ["Concepts", "concepts", "sparse_weights"]

SCHEMA = "clip-anatomy/concepts/1"
LEAST = 1e-5  # weights below are rounding of the solver
FEW = 8  # images whose mean says something about the modality gap
DRAWS = 16  # random directions for the chance level
SHOWN = 8  # texts of a row in the summary


@public
@dataclass(frozen=True, repr=False)
class Concepts(Result):
    """Hold what some embeddings are made of, in texts.

    Attributes:
        names: what each row is called.
        texts: the vocabulary.
        weights: non-negative (but under `released`), most of them zero, in units of the centred embedding's length.
        cosine: of each embedding with its reconstruction.
        explained: 1 − ‖z − w C‖² of the centred embedding z.
        chance: what the same texts explain of random directions, mean; and how many texts they take.
        penalty: of the l1 norm; None where the number of texts was given.
        pictures: the originals, if they were pictures.
        notes: what a reader must know.
        failed: pictures that could not be used: name and error.
    """

    presenter: ClassVar[str] = "concepts_figure"

    names: tuple[str, ...]
    texts: tuple[str, ...]
    weights: Float64[Tensor, "row text"]
    cosine: Float64[Tensor, " row"]
    explained: Float64[Tensor, " row"]
    chance: tuple[float, float]
    penalty: float | None
    pictures: tuple[NamedPicture, ...] | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()
    failed: tuple[Failed, ...] = ()

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.names)

    def of(self, row: int) -> tuple[tuple[str, float], ...]:
        """List the texts of a row with their weights, the largest first."""
        row = within("row", row, len(self.names))
        size = self.weights[row].abs()
        order = size.argsort(descending=True, stable=True).tolist()
        return tuple((self.texts[at], float(self.weights[row, at])) for at in order if size[at] > LEAST)

    def to_dict(self) -> dict[str, Any]:
        """Return the texts of every row and what they explain, ready for JSON."""
        rows = [
            {
                "name": name,
                "texts": [{"text": text, "weight": round(weight, 6)} for text, weight in self.of(row)],
                "cosine": round(float(self.cosine[row]), 6),
                "explained": round(float(self.explained[row]), 6),
            }
            for row, name in enumerate(self.names)
        ]
        chance = {"explained": round(self.chance[0], 6), "texts": round(self.chance[1], 2)}
        return {
            "schema": SCHEMA,
            "penalty": self.penalty,
            "vocabulary": len(self.texts),
            "chance": chance,
            "rows": rows,
            "notes": list(self.notes),
            "failed": [list(one) for one in self.failed],
        }

    def summary(self) -> str:
        """Return the strongest texts of every row as a table."""
        rows: list[tuple[str, ...]] = []
        for row, name in enumerate(self.names[:12]):
            strongest, many = self.of(row), f"{float(self.explained[row]):.0%}"
            for at, (text, weight) in enumerate(strongest[:SHOWN] or (("no text", 0.0),)):
                rows.append(
                    (
                        *((name, many, f"{float(self.cosine[row]):.3f}") if not at else ("", "", "")),
                        text,
                        f"{weight:.3f}",
                    )
                )
            if len(strongest) > SHOWN:
                rows.append(("", "", "", f"and {len(strongest) - SHOWN} more", ""))
        how = "by number" if self.penalty is None else f"penalty {self.penalty:g}"
        chance = f"chance: {self.chance[0]:.0%} of a random direction, by {self.chance[1]:.1f} texts"
        more = f"\n… and {len(self) - 12:,} more rows in to_dict()" if len(self) > 12 else ""
        title = f"sparse concepts of {len(self.texts):,} texts, {how}; {chance}"
        return text_table(("name", ">explained", ">cosine", "text", ">weight"), rows, title=title, groups=True) + more


@public
def concepts(
    clip: Clip,
    images: Pictures | None = None,
    pool: str | Path | Pool | None = None,
    *,
    texts: Sequence[str] | None = None,
    directions: Float[Tensor, "row embed"] | None = None,
    over: "Store | str | Path | Float[Tensor, 'embed'] | None" = None,
    penalty: int | float = 0.25,
    count: int | None = None,
    released: bool = False,
    allow_urls: bool = False,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> Concepts:
    """Write embeddings as sums of few texts.

    Args:
        clip: an opened model.
        images: what to write as texts: pictures of any kind; or instead
        pool: the vocabulary: "general", "world", a file of one text per line, a pool; by default the general one (the demo
            model: the world's).
        texts: texts to write as other texts: a class, a caption; or
        directions: any directions of the joint space, [row, embed]: what a head or a neuron writes. They are not centred.
        over: the images' mean (modality gap): a store, or the mean of unit embeddings itself. By default that of the
            images given, if there are eight or more; else nothing is taken off, and a note says so.
        penalty: of the l1 norm; larger is sparser. 0.25 is the paper's.
        count: take exactly so many texts instead, by matching pursuit.
        released: as the released code of second-order effects and of neuron–head pairs: the vocabulary is normalised over its texts, number by number of
            the joint space, instead of each text; and with `count` a text may be taken with a negative weight.
        allow_urls: fetch pictures given as http(s) addresses.
        skip_bad: report pictures that cannot be used in `failed`, instead of raising at the first.
        progress: told as it goes.

    Returns:
        Texts with weights, one row for each image, text or direction.

    Raises:
        BadInput: not exactly one of images, texts and directions; directions or a mean of the wrong shape.
        BadSpec: a penalty or a number of texts that makes no sense.
        MissingExtra: scikit-learn is not installed.

    Example:
        >>> import clip_anatomy as ca
        >>> from clip_anatomy.loading.demo import examples
        >>> result = ca.concepts(ca.load("demo"), examples()[:8], count=2)
        >>> len(result), len(result.of(0)) <= 2, 0 <= float(result.explained.min())
        (6, True, True)
    """
    if sum(one is not None for one in (images, texts, directions)) != 1:
        raise BadInput("give pictures, texts or directions, one of the three. Type: concepts(clip, ['photo.jpg'])")
    _check(penalty, count)
    tell, failed, notes = progress or silent, list[Failed](), list[str]()
    vocabulary, _ = pool_of(pool, clip)
    if len(vocabulary) < 2:
        raise BadInput(
            "a vocabulary of one text leaves nothing when its mean is taken off. Type pool=FILE with many texts"
        )
    dictionary, text_mean = _dictionary(
        normalize(embed_texts(clip, vocabulary.texts, progress=tell).double().cpu(), dim=-1), released=released
    )
    pictures: tuple[NamedPicture, ...] | None = None
    if directions is not None:
        vectors, mean = (
            _directions(directions, dictionary.shape[1]),
            torch.zeros(dictionary.shape[1], dtype=torch.float64),
        )
        names = tuple(f"direction {at}" for at in range(len(vectors)))
    elif texts is not None:
        vectors, mean, names = clip.encode_text(list(texts)).double().cpu(), text_mean, tuple(texts)
    else:
        assert images is not None
        vectors, names, pictures = embedded_pictures(
            clip, images, allow_urls=allow_urls, failed=failed if skip_bad else None, notes=notes, progress=tell
        )
        mean = _image_mean(over, vectors, clip, notes)
    unit = normalize(vectors, dim=-1)
    centred = normalize(unit - mean, dim=-1)
    weights = sparse_weights(centred, dictionary, penalty=penalty, count=count, signed=released, progress=tell)
    back = weights @ dictionary
    rebuilt = normalize(normalize(back, dim=-1) + mean, dim=-1)
    random = normalize(
        torch.randn(DRAWS, dictionary.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64), dim=-1
    )
    by_chance = sparse_weights(random, dictionary, penalty=penalty, count=count, signed=released)
    chance = (
        float(_explained(random, by_chance @ dictionary).mean()),
        float((by_chance.abs() > LEAST).sum(1).double().mean()),
    )
    return Concepts(
        names, vocabulary.texts, weights, (unit * rebuilt).sum(-1), _explained(centred, back), chance,
        None if count else penalty, pictures, tuple(notes), tuple(failed),
    )  # fmt: skip


def sparse_weights(
    vectors: Float64[Tensor, "row embed"],
    dictionary: Float64[Tensor, "text embed"],
    *,
    penalty: int | float = 0.25,
    count: int | None = None,
    signed: bool = False,
    progress: Progress | None = None,
) -> Float64[Tensor, "row text"]:
    """Solve min ‖x − w C‖² + penalty · ‖w‖₁ with w ≥ 0 for each row, or choose `count` texts greedily; `signed` of either sign.

    Example:
        >>> sparse_weights(torch.tensor([[0.75, 0.5]]).double(), torch.eye(2).double(), penalty=0.25).tolist()
        [[0.625, 0.375]]
    """
    tell, matrix = progress or silent, np.asfortranarray(dictionary.numpy().T)
    gram, weights = matrix.T @ matrix if count is None else None, np.zeros((len(vectors), len(dictionary)))
    for row, x in enumerate(vectors.numpy()):
        weights[row] = _pursuit(x, matrix, count, signed=signed) if count else _lasso(x, matrix, gram, penalty)
        tell("writing embeddings as texts", row + 1, len(vectors))
    weights[np.abs(weights) < LEAST] = 0
    return torch.from_numpy(weights)


def _lasso(x: np.ndarray, matrix: np.ndarray, gram: "np.ndarray | None", penalty: int | float) -> np.ndarray:
    try:
        linear = importlib.import_module("sklearn.linear_model")
    except ImportError as error:
        raise MissingExtra("scikit-learn", "measure") from error
    # scikit-learn divides the square by twice the number of equations.
    model = linear.Lasso(
        penalty / (2 * len(x)), fit_intercept=False, precompute=gram, positive=True, max_iter=100_000, tol=1e-9
    )
    return model.fit(matrix, x).coef_


def _pursuit(x: np.ndarray, matrix: np.ndarray, count: int, *, signed: bool = False) -> np.ndarray:
    try:
        nnls = importlib.import_module("scipy.optimize").nnls
    except ImportError as error:
        raise MissingExtra("scipy", "measure") from error
    weights, chosen, rest = np.zeros(matrix.shape[1]), list[int](), x
    for _ in range(min(count, *matrix.shape)):
        fit = np.abs(matrix.T @ rest) if signed else matrix.T @ rest
        fit[chosen] = -np.inf
        if fit.max() <= 0:
            break
        chosen.append(int(fit.argmax()))
        values = np.linalg.lstsq(matrix[:, chosen], x, rcond=None)[0] if signed else nnls(matrix[:, chosen], x)[0]
        rest = x - matrix[:, chosen] @ values
        weights[chosen] = values
    return weights


def _explained(x: Float64[Tensor, "row embed"], back: Float64[Tensor, "row embed"]) -> Float64[Tensor, " row"]:
    return 1 - (x - back).square().sum(-1) / x.square().sum(-1)


def _dictionary(
    unit: Float64[Tensor, "text embed"], *, released: bool = False
) -> tuple[Float64[Tensor, "text embed"], Float64[Tensor, " embed"]]:
    mean = unit.mean(0)
    return normalize(unit - mean, dim=0 if released else -1), mean


def _directions(given: Tensor, embed: int) -> Float64[Tensor, "row embed"]:
    if given.dim() != 2 or given.shape[1] != embed or not len(given) or not bool(given.isfinite().all()):
        raise BadInput(
            f"directions are {list(given.shape)}; finite [row, {embed}] were expected. Type: direction[None]"
        )
    directions = given.detach().double().cpu()
    if not bool(directions.any(1).all()):
        raise BadInput(f"direction {int((~directions.any(1)).int().argmax())} is zero: it points nowhere. Leave it out")
    return directions


def _image_mean(over: object, vectors: Tensor, clip: Clip, notes: list[str]) -> Float64[Tensor, " embed"]:
    embed = vectors.shape[1]
    if isinstance(over, str | Path | Store):
        store = Store.open(over, clip) if isinstance(over, str | Path) else over
        store.manifest.refuse_other(clip.name, clip.digest, store.path)
        return store.embeddings(unit=True).double().mean(0)
    if isinstance(over, Tensor):
        if tuple(over.shape) != (embed,) or not bool(over.isfinite().all()):
            raise BadInput(
                f"over is {list(over.shape)}; the finite mean of unit embeddings [{embed}] was expected. Type: over=STORE"
            )
        return over.double().cpu()
    if over is not None:
        raise BadInput(f"over is a {type(over).__name__}; a store or a tensor [{embed}] was expected. Type: over=STORE")
    if len(vectors) >= FEW:
        return normalize(vectors, dim=-1).mean(0)
    notes.append(
        f"The gap between pictures and texts is not taken off: {len(vectors)} pictures have no mean that says something. "
        "Type over=STORE, or give eight pictures or more"
    )
    return torch.zeros(embed, dtype=torch.float64)


def _check(penalty: int | float, count: int | None) -> None:
    if not 0 < penalty < 10:
        raise BadSpec(f"penalty={penalty!r} is not between 0 and 10. Type: penalty=0.25")
    if count is not None and not 1 <= count <= 1000:
        raise BadSpec(f"count={count!r}: 1 to 1000 texts were expected. Type: count=10")
