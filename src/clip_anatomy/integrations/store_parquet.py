"""A store as one Parquet file, for Embedding Atlas, DuckDB, pandas: rows, embeddings, what heads write toward texts."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from clip_anatomy.edits.selection import Selection
from clip_anatomy.errors import BadInput, MissingExtra
from clip_anatomy.files import path_of, written_whole
from clip_anatomy.loading.clip import Clip
from clip_anatomy.maps.map_texts import Texts
from clip_anatomy.progress import Progress, silent
from clip_anatomy.public_functions import public
from clip_anatomy.store.store import Store
from clip_anatomy.store.store_model import model_of

__all__ = ["to_parquet"]

PIECE = 4096  # images at a time
MOST = 5000  # columns of head scores


@public
def to_parquet(
    store: Store | str | Path,
    file: str | Path,
    texts: Sequence[str] = (),
    heads: Selection | str | None = None,
    *,
    clip: Clip | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write a store as one Parquet file: a row an image.

    Columns: id, path, label, group, row, col, captions, meta (JSON), `embedding` (unit length, a list of float32), for each text `cosine: TEXT`, and
    for each chosen head `7.3: TEXT`, the head's share of that cosine. Embedding Atlas shows it: `embedding-atlas FILE --vector embedding`.

    Args:
        store: a store, or its folder.
        file: to write.
        texts: what images and heads are scored by.
        heads: which heads are scored, as `Selection.parse` reads them: "7.3,7.0", "last=2". None: no heads.
        clip: the store's model; opened by its name where texts are given.
        progress: told how many images are written.

    Returns:
        The file.

    Raises:
        MissingExtra: pyarrow is not installed.
        BadInput: heads without texts, or too many columns.
        StoreError: the model is another one than the store's.

    Example:
        >>> import tempfile, clip_anatomy as ca
        >>> clip = ca.load("demo")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = ca.index(clip, "world:8:test", folder + "/store")
        ...     file = ca.to_parquet(folder + "/store", folder + "/store.parquet", ["a bird"], "7.3", clip=clip)
        ...     import pyarrow.parquet as pq
        ...     pq.read_table(file).column_names[-3:]
        ['embedding', 'cosine: a bird', '7.3: a bird']
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtra("pyarrow", "atlas") from error
    opened, tell = store if isinstance(store, Store) else Store.open(store), progress or silent
    names, unit = _texts(opened, texts, clip)
    pairs = _heads(opened, heads, len(names))
    rows = opened.rows()
    target, writer = path_of(file), None
    with written_whole(target) as beside:
        try:
            for first in range(0, max(len(rows), 1), PIECE):
                piece = slice(first, min(first + PIECE, len(rows)))
                embedding = opened.embeddings(piece, unit=True)
                columns: dict[str, Any] = {
                    name: [getattr(row, name) for row in rows[piece]]
                    for name in ("id", "path", "label", "group", "row", "col")
                }
                columns["captions"] = pa.array([list(row.captions) for row in rows[piece]], pa.list_(pa.string()))
                columns["meta"] = [json.dumps(dict(row.meta), default=str) for row in rows[piece]]
                values = pa.array(embedding.numpy().reshape(-1), pa.float32())
                columns["embedding"] = pa.FixedSizeListArray.from_arrays(values, embedding.shape[1])
                if unit is not None:
                    columns |= _scores("cosine", names, embedding @ unit.T)
                    for layer, head in pairs:
                        directions = opened.basis.rows[opened.layer_at(layer), head].float() @ unit.T
                        wrote = opened.heads(layer, head, piece).float() @ directions
                        columns |= _scores(f"{layer}.{head}", names, wrote)
                table = pa.table(columns)
                writer = writer or pq.ParquetWriter(beside, table.schema)
                writer.write_table(table.cast(writer.schema))
                tell("writing rows", piece.stop, len(rows))
        finally:
            if writer is not None:
                writer.close()
    return target


def _scores(what: str, names: Sequence[str], values: Tensor) -> dict[str, Any]:
    return {f"{what}: {name}": np.ascontiguousarray(values[:, at].numpy()) for at, name in enumerate(names)}


def _texts(store: Store, texts: Sequence[str], clip: Clip | None) -> tuple[tuple[str, ...], Tensor | None]:
    if not texts:
        return (), None
    model = model_of(store, clip)
    typed = Texts.of(model, texts)
    return typed.names, F.normalize(typed.embeddings, dim=-1).cpu()


def _heads(store: Store, heads: Selection | str | None, texts: int) -> tuple[tuple[int, int], ...]:
    manifest = store.manifest
    if heads is None:
        return ()
    chosen = heads if isinstance(heads, Selection) else Selection.parse(heads, manifest.depth, manifest.heads)
    if not texts or len(chosen.heads) * texts > MOST:
        raise BadInput(
            f"{len(chosen.heads)} heads and {texts} texts make {len(chosen.heads) * texts} columns; 1 to {MOST} were expected. "
            "Type: texts=['a dog'], heads='last=2'"
        )
    return chosen.heads
