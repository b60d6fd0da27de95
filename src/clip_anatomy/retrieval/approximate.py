"""An approximate index of one set of heads, for stores where the exact scan takes too long (beyond ten million images).

STORE/approximate/NAME/index.json    what it is of: images, heads, measure, recall        index.faiss    faiss's own format

A set of heads is a space of its own, so that an index serves one set only. How often it finds what the exact scan finds is measured
on images of the store when it is built, for several widths of the search, and kept in index.json.
"""

import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from clip_anatomy.atomic_output import Kind, as_json, atomic_output
from clip_anatomy.errors import BadInput, MissingExtra, OutputError, reading
from clip_anatomy.files import digest, digest_of_file, read_json
from clip_anatomy.progress import Progress, silent
from clip_anatomy.retrieval.scan import best, scores
from clip_anatomy.retrieval.subspace import Space
from clip_anatomy.store.store import Store

__all__ = ["ApproximateIndex", "IndexRecord", "approximate_index", "build_index"]

FORMAT = "clip-anatomy search index 3"
FOLDER, RECORD, DATA = "approximate", "index.json", "index.faiss"
KIND = Kind("index", RECORD, "clip-anatomy search index ", (DATA, RECORD))
LARGEST = 2**20  # bytes of index.json
AGAIN = "It is built anew"
PIECE = 16_384
WIDTHS = (1, 4, 16, 64)  # lists that are looked at, tried when recall is measured
GOAL = 0.95
PER_LIST = 40  # training vectors a list, as faiss asks for


@dataclass(frozen=True)
class IndexRecord:
    """What an index is of, and how good it is.

    Attributes:
        digest: of the model's weights.
        content: of the store, its hash; an index is built anew when it holds other images since.
        images: how many it covers.
        pairs: its heads.
        cosine: whether vectors have unit length in it.
        lists: into how many lists the images were dealt.
        probed: how many of them are looked at.
        recall: (lists looked at, share of the exact scan's k that was found, seconds a query), measured when it was built.
        k: for how many neighbours that was measured.
        queries: with how many images.
        exact_seconds: seconds of an exact query at that time.
        seconds: that building took.
        checksum: of faiss's file.
        format: version of this layout.
    """

    digest: str
    content: str
    images: int
    pairs: tuple[tuple[int, int], ...]
    cosine: bool
    lists: int
    probed: int
    recall: tuple[tuple[int, float, float], ...]
    k: int
    queries: int
    exact_seconds: float
    seconds: float
    checksum: str = ""
    format: str = FORMAT

    @property
    def summary(self) -> str:
        """Recall in words."""
        tried = "; ".join(
            f"{lists} of {self.lists} lists: {share:.1%}, {1e3 * spent:.1f} ms" for lists, share, spent in self.recall
        )
        warning = ""
        if self.lists > 1 and self.probed * 4 >= self.lists:
            warning = (
                ", a quarter of them or more: these heads do not fall into lists, so that the index saves little; the exact "
                "scan is right"
            )
        return (
            f"recall@{self.k} against the exact scan ({1e3 * self.exact_seconds:.1f} ms) over {self.queries} images: {tried}. "
            f"Used: {self.probed} lists{warning}"
        )


@dataclass(frozen=True)
class ApproximateIndex:
    """An index that is open.

    Attributes:
        record: what it is of.
        index: of faiss.
    """

    record: IndexRecord
    index: Any

    def nearest(self, direction: Float64[Tensor, " out"], k: int) -> list[int]:
        """Return the places of about the k best images."""
        aim = np.ascontiguousarray(direction.to(torch.float32).numpy()[None])
        places = self.index.search(aim, min(k, self.record.images))[1][0]
        return [int(at) for at in places if at >= 0]


def approximate_index(
    store: Store, space: Space, *, cosine: bool, progress: Progress | None = None
) -> ApproximateIndex:
    """Open the index of some heads that is kept in the store; build it there if there is none, or the store has changed since.

    Args:
        store: the store.
        space: the heads, as they are compared.
        cosine: for cosines; otherwise for inner products.
        progress: called as it is built.

    Raises:
        BadInput: what is compared is no fixed set of heads.
        MissingExtra: faiss is not installed.
        OutputError: the store cannot be written.
    """
    faiss = _need_faiss()
    if space.mode != "heads" or space.focus is not None:
        raise BadInput(
            "an approximate index serves whole heads. Type heads='9.3,10.1' or heads='role=ROLE', without focus="
        )
    folder = store.path / FOLDER / _name(space, cosine=cosine)
    with suppress(BadInput):  # there is none, or a damaged one: built anew
        record = _read_record(folder)
        fits = (store.manifest.digest, store.content, FORMAT, space.pairs, cosine)
        if (record.digest, record.content, record.format, record.pairs, record.cosine) == fits:
            with reading(folder / DATA, AGAIN):
                if digest_of_file(folder / DATA) != record.checksum:  # faiss trusts what it reads
                    raise ValueError("its bytes are not those that were written")
                index = faiss.read_index(str(folder / DATA))
                index.nprobe = record.probed
            return ApproximateIndex(record, index)
    return build_index(store, space, cosine=cosine, progress=progress)


def build_index(
    store: Store,
    space: Space,
    *,
    cosine: bool = True,
    lists: int | None = None,
    k: int = 100,
    queries: int = 100,
    progress: Progress | None = None,
) -> ApproximateIndex:
    """Build an approximate index (faiss, inverted lists of 8-bit numbers), measure its recall, and keep it in the store.

    Args:
        store: the store.
        space: the heads, as they are compared.
        cosine: for cosines; otherwise for inner products.
        lists: into how many lists images are dealt; 4 √n by default.
        k: neighbours that recall is measured with.
        queries: images that it is measured with.
        progress: called as it is built.

    Raises:
        BadInput: a store of one image.
        MissingExtra: faiss is not installed.
        OutputError: the store cannot be written.
    """
    faiss = _need_faiss()
    tell = progress or silent
    if len(store) < 2:
        raise BadInput(f"{store.path} holds {len(store)} images: an index needs two or more")
    began = time.perf_counter()
    count = min(lists or max(1, round(4 * len(store) ** 0.5)), max(1, len(store) // PER_LIST))
    index = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(space.size), space.size, count, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
    )
    generator = np.random.default_rng(0)
    sample = np.sort(generator.choice(len(store), min(len(store), count * PER_LIST * 2), replace=False))
    tell("training", 0, 1)
    index.train(_vectors(store, space, sample, cosine=cosine))
    for first in range(0, len(store), PIECE):
        rows = np.arange(first, min(first + PIECE, len(store)))
        index.add(_vectors(store, space, rows, cosine=cosine))
        tell("adding images", int(rows[-1]) + 1, len(store))
    some = generator.choice(len(store), min(queries, len(store)), replace=False)
    recall, exact = _recall(store, space, index, some, k, cosine=cosine, progress=tell)
    probed = next((width for width, share, _ in recall if share >= GOAL), recall[-1][0])
    index.nprobe = probed
    record = IndexRecord(
        digest=store.manifest.digest,
        content=store.content,
        images=len(store),
        pairs=space.pairs,
        cosine=cosine,
        lists=count,
        probed=probed,
        recall=recall,
        k=k,
        queries=len(some),
        exact_seconds=exact,
        seconds=time.perf_counter() - began,
    )
    _keep(faiss, index, record, store, _name(space, cosine=cosine))
    return ApproximateIndex(record, index)


def _keep(faiss: Any, index: Any, record: IndexRecord, store: Store, name: str) -> None:
    try:
        with atomic_output(store.beside(FOLDER) / name, KIND) as output:
            faiss.write_index(index, str(output.folder / DATA))
            complete = replace(record, checksum=digest_of_file(output.folder / DATA))
            output.write(RECORD, as_json({"schema": FORMAT, **asdict(complete)}))
    except (OSError, RuntimeError) as error:
        raise OutputError(
            f"{store.path / FOLDER / name} cannot be written ({error}). Leave approximate= away: the exact scan writes nothing"
        ) from error


def _read_record(folder: Path) -> IndexRecord:
    with reading(folder / RECORD, AGAIN):
        values: dict[str, Any] = read_json(folder / RECORD, AGAIN, largest=LARGEST)
        values |= {name: tuple(tuple(one) for one in values[name]) for name in ("pairs", "recall")}
        values.pop("schema")
        return IndexRecord(**values)


def _name(space: Space, *, cosine: bool) -> str:
    """Name of the folder of an index: short for many heads too."""
    heads = ",".join(f"{layer}.{head}" for layer, head in space.pairs)
    measure = "cosine" if cosine else "dot"
    return f"{heads if len(heads) < 60 else digest(heads, size=8, algorithm='sha256')}-{measure}"


def _recall(
    store: Store, space: Space, index: Any, images: np.ndarray, k: int, *, cosine: bool, progress: Progress
) -> tuple[tuple[tuple[int, float, float], ...], float]:
    """Share of the exact scan's k best, the image itself aside, that each width finds, and the seconds that both take."""
    widths = sorted({min(width, index.nlist) for width in (*WIDTHS, index.nlist // 4, index.nlist) if width > 0})
    right, spent = dict.fromkeys(widths, 0.0), dict.fromkeys(widths, 0.0)
    exact = 0.0
    vectors = _vectors(store, space, images, cosine=cosine)
    for done, (own, vector) in enumerate(zip(images, vectors, strict=True), 1):
        began = time.perf_counter()
        truth = {*best(scores(store, space, torch.from_numpy(vector).double(), cosine=cosine), k + 1)} - {int(own)}
        exact += time.perf_counter() - began
        for width in widths:
            index.nprobe = width
            began = time.perf_counter()
            places = index.search(vector[None], len(truth) + 1)[1][0]
            spent[width] += time.perf_counter() - began
            right[width] += len(truth & {int(at) for at in places}) / len(truth)
        progress("measuring recall", done, len(vectors))
    n = len(vectors)
    return tuple((width, right[width] / n, spent[width] / n) for width in widths), exact / n


def _vectors(store: Store, space: Space, rows: np.ndarray, *, cosine: bool) -> Float32[np.ndarray, "image out"]:
    vectors = space.rows(store, rows.tolist())
    vectors = torch.nn.functional.normalize(vectors, dim=-1) if cosine else vectors
    return np.ascontiguousarray(vectors.float().numpy())


def _need_faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise MissingExtra("faiss", "search") from error
    return faiss
