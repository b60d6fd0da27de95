"""An approximate index for one fixed set of heads, for stores where the exact scan takes too long (beyond ten million images).

FOLDER/about.json      what it is of: store, heads, measure, recall        FOLDER/index.faiss     faiss's own format

A head set is a space of its own, so that an index serves one set only. How often it finds what the exact scan finds is measured
on images of the store when it is built, for several widths of the search, and kept in about.json.
"""

import json
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from clip_anatomy.errors import BadInput, MissingExtra, OutputError, StoreError
from clip_anatomy.retrieval.head_choice import HeadSpec
from clip_anatomy.retrieval.scan import best, scores
from clip_anatomy.retrieval.subspace import Space, space_of
from clip_anatomy.store.store import Store

__all__ = ["Approximate", "Built", "build_index", "open_index"]

FORMAT = "clip-anatomy search index 1"
ABOUT, DATA = "about.json", "index.faiss"
PIECE = 16_384
PROBED = (1, 4, 16, 64)  # lists that are looked at, tried when recall is measured
GOAL = 0.95
PER_LIST = 40  # training vectors a list, as faiss asks for


@dataclass(frozen=True)
class Built:
    """What an index is of.

    Attributes:
        store: folder of the store.
        digest: of the model's weights.
        epoch: of the store; an index is refused when images were removed since.
        images: how many it covers.
        pairs: its heads.
        cosine: whether vectors have unit length in it.
        centred: whether means were taken away.
        lists: into how many lists the images were dealt.
        probed: how many of them are looked at.
        recall: (lists looked at, share of the exact scan's k that was found, seconds a query), measured when it was built.
        k: for how many neighbours that was measured.
        queries: with how many images.
        exact_seconds: seconds of an exact query at that time.
        seconds: that building took.
        format: version of this layout.
    """

    store: str
    digest: str
    epoch: int
    images: int
    pairs: tuple[tuple[int, int], ...]
    cosine: bool
    centred: bool
    lists: int
    probed: int
    recall: tuple[tuple[int, float, float], ...]
    k: int
    queries: int
    exact_seconds: float
    seconds: float
    format: str = FORMAT

    @property
    def told(self) -> str:
        """Recall in words."""
        tried = "; ".join(
            f"{lists} of {self.lists} lists: {share:.1%}, {1e3 * spent:.1f} ms" for lists, share, spent in self.recall
        )
        return (
            f"recall@{self.k} against the exact scan ({1e3 * self.exact_seconds:.1f} ms) over {self.queries} images: {tried}. "
            f"Used: {self.probed} lists{self._warning}"
        )

    @property
    def _warning(self) -> str:
        if self.lists == 1 or self.probed * 4 < self.lists:
            return ""
        return ", a quarter of them or more: these heads do not fall into lists, so that the index saves little; the exact scan is right"


@dataclass(frozen=True)
class Approximate:
    """An opened index."""

    built: Built
    index: Any

    def asking(self, direction: Float64[Tensor, " out"], *, cosine: bool) -> Callable[[int], list[int]]:
        """A function from k to the places of about the k best images.

        Raises:
            BadInput: the index holds vectors for the other measure.
        """
        if cosine != self.built.cosine:
            had = "cosine" if self.built.cosine else "dot"
            raise BadInput(f"this index was built for {had}. Type measure={had!r}, or leave approximate= away")
        aim = np.ascontiguousarray(direction.to(torch.float32).numpy()[None])

        def nearest(k: int) -> list[int]:
            found = self.index.search(aim, min(k, self.built.images))[1][0]
            return [int(at) for at in found if at >= 0]

        return nearest


def build_index(
    store: Store | str | Path,
    heads: HeadSpec,
    out: str | Path,
    *,
    cosine: bool = True,
    centred: bool = True,
    lists: int | None = None,
    k: int = 100,
    queries: int = 100,
    progress: Callable[[str, int, int], None] | None = None,
) -> Built:
    """Build an approximate index of some heads of a store (faiss, inverted lists of 8-bit numbers), and measure its recall.

    Args:
        store: the store.
        heads: "9.3,10.1", (layer, head) pairs or "all".
        out: folder to make.
        cosine: for cosines; otherwise for inner products.
        centred: take the stored means away.
        lists: into how many lists images are dealt; 4 √n by default.
        k: neighbours that recall is measured with.
        queries: images that it is measured with.
        progress: called with what is being done, how much of it is done, and how much there is.

    Returns:
        What was built; `told` says the recall in words.

    Raises:
        MissingExtra: faiss is not installed.
        OutputError: `out` cannot be written, or is there.
    """
    faiss = _need_faiss()
    from clip_anatomy.retrieval.head_choice import checked_pairs

    opened = store if isinstance(store, Store) else Store.open(store)
    tell = progress or (lambda what, done, total: None)
    if len(opened) < 2:
        raise BadInput(f"{opened.path} holds {len(opened)} images: an index needs two or more")
    target = Path(out)
    if target.exists() and not (target / ABOUT).is_file():
        raise OutputError(f"{target} is there and is no search index. Type another folder")
    pairs = checked_pairs(opened, heads)
    space = space_of(opened, "heads", pairs, centred=centred)
    began = time.perf_counter()
    count = min(lists or max(1, round(4 * len(opened) ** 0.5)), max(1, len(opened) // PER_LIST))
    coarse = faiss.IndexFlatIP(space.size)
    index = faiss.IndexIVFScalarQuantizer(
        coarse, space.size, count, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
    )
    generator = np.random.default_rng(0)
    sample = np.sort(generator.choice(len(opened), min(len(opened), count * PER_LIST * 2), replace=False))
    tell("training", 0, 1)
    index.train(_vectors(opened, space, sample, cosine=cosine))
    for first in range(0, len(opened), PIECE):
        rows = np.arange(first, min(first + PIECE, len(opened)))
        index.add(_vectors(opened, space, rows, cosine=cosine))
        tell("adding images", int(rows[-1]) + 1, len(opened))
    asked = generator.choice(len(opened), min(queries, len(opened)), replace=False)
    recall, exact = _recall(opened, space, index, asked, k, cosine=cosine, tell=tell)
    enough = [lists for lists, share, _ in recall if share >= GOAL]
    probed = enough[0] if enough else recall[-1][0]
    built = Built(
        str(opened.path),
        opened.manifest.digest,
        opened.epoch,
        len(opened),
        tuple(space.pairs),
        cosine,
        centred,
        count,
        probed,
        recall,
        k,
        len(asked),
        exact,
        time.perf_counter() - began,
    )
    part = target.with_name(f".{target.name}.partial-{secrets.token_hex(4)}")
    try:
        part.mkdir(parents=True)
        faiss.write_index(index, str(part / DATA))
        (part / ABOUT).write_text(json.dumps(asdict(built), indent=1) + "\n")
        if target.exists():
            shutil.rmtree(target)
        part.rename(target)
    except (OSError, RuntimeError) as error:
        raise OutputError(f"{target} cannot be written ({error}). Type a folder that you may write") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return built


def _recall(
    store: Store,
    space: Space,
    index: Any,
    asked: np.ndarray,
    k: int,
    *,
    cosine: bool,
    tell: Callable[[str, int, int], None],
) -> tuple[tuple[tuple[int, float, float], ...], float]:
    """Share of the exact scan's k best, the image itself aside, that each width finds, and the seconds that both take."""
    widths = sorted({min(width, index.nlist) for width in (*PROBED, index.nlist // 4, index.nlist) if width > 0})
    right, spent = dict.fromkeys(widths, 0.0), dict.fromkeys(widths, 0.0)
    exact = 0.0
    vectors = _vectors(store, space, asked, cosine=cosine)
    for done, (own, vector) in enumerate(zip(asked, vectors, strict=True), 1):
        began = time.perf_counter()
        truth = {*best(scores(store, space, torch.from_numpy(vector).double(), cosine=cosine), k + 1)} - {int(own)}
        exact += time.perf_counter() - began
        for width in widths:
            index.nprobe = width
            began = time.perf_counter()
            found = index.search(vector[None], len(truth) + 1)[1][0]
            spent[width] += time.perf_counter() - began
            right[width] += len(truth & {int(at) for at in found}) / len(truth)
        tell("measuring recall", done, len(vectors))
    n = len(vectors)
    return tuple((width, right[width] / n, spent[width] / n) for width in widths), exact / n


def _vectors(store: Store, space: Space, rows: np.ndarray, *, cosine: bool) -> Float32[np.ndarray, "image out"]:
    found = space.rows(store, rows.tolist())
    found = torch.nn.functional.normalize(found, dim=-1) if cosine else found
    return np.ascontiguousarray(found.float().numpy())


def open_index(path: str | Path, store: Store, space: Space) -> Approximate:
    """Open an index for a search with these vectors.

    Raises:
        StoreError: no index, a damaged one, or one of another store, of other heads, or of images that were removed since.
    """
    faiss = _need_faiss()
    folder = Path(path)
    try:
        told: dict[str, Any] = json.loads((folder / ABOUT).read_text())
        if told["format"] != FORMAT:
            raise StoreError(f"{folder} is {told['format']!r}; build it anew")
        told |= {"pairs": tuple((a, b) for a, b in told["pairs"]), "recall": tuple(tuple(r) for r in told["recall"])}
        built = Built(**told)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{folder} is no search index ({error}). Build one: clip-anatomy search STORE --heads 9.3 --build {folder}"
        ) from error
    manifest = store.manifest
    if (built.digest, built.epoch, built.images) != (manifest.digest, store.epoch, len(store)):
        raise StoreError(
            f"{folder} was built over {built.images:,} images of {built.store}; {store.path} now has {len(store):,}, or others. "
            "Build it anew: --build"
        )
    if space.mode != "heads" or space.focus is not None or built.pairs != space.pairs or built.centred != space.centred:
        raise StoreError(
            f"{folder} serves heads {','.join(f'{a}.{b}' for a, b in built.pairs)} ({'centred' if built.centred else 'not centred'}) "
            "only. Type these heads, or leave --approximate away"
        )
    try:
        index = faiss.read_index(str(folder / DATA))
    except RuntimeError as error:
        raise StoreError(f"{folder / DATA} is damaged ({error}). Build it anew: --build") from error
    index.nprobe = built.probed
    return Approximate(built, index)


def _need_faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise MissingExtra("faiss", "search") from error
    return faiss
