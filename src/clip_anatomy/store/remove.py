"""`remove`: take images out of a store."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clip_anatomy.errors import BadInput
from clip_anatomy.store import rows as sql
from clip_anatomy.store.writer import Writer

__all__ = ["remove"]


def remove(
    store: str | Path,
    ids: Sequence[str] | None = None,
    *,
    where: str | None = None,
    parameters: Sequence[Any] | Mapping[str, Any] = (),
    wipe: bool = True,
) -> int:
    """Take images out of a store: out of everything it returns, out of its moments, off the disk.

    Their rows stay as tombstones, so that indexing the same source again does not bring them back.

    Args:
        store: folder of the store.
        ids: which images, by id; or
        where: an SQL condition, as for `Store.rows`.
        parameters: values of its `?` or `:name`.
        wipe: also write the blocks they were in anew, without their numbers; otherwise that happens when those blocks
            are next merged.

    Returns:
        How many were taken out.

    Raises:
        BadInput: neither or both of ids and where; an id that is not there; a condition that is not SQL.
        StoreError: no store, or another process is writing it.
    """
    if (ids is None) == (where is None):
        raise BadInput(
            "remove takes ids or where. Type: remove(store, ids=['a.jpg']) or remove(store, where='label = ?', ...)"
        )
    with Writer.open(Path(store)) as writer:
        rows = writer.rows
        if ids is not None:
            text = "SELECT key FROM images WHERE id = ? AND status = 'done'"
            matches = {id: rows.execute(text, (id,)).fetchone() for id in ids}
            if missing := [id for id, row in matches.items() if row is None]:
                raise BadInput(
                    f"{missing[0]!r} (and {len(missing) - 1} more) is not in {store}. Type ids from Store.rows()"
                )
            keys = [row[0] for row in matches.values()]
        else:
            keys = [row["key"] for row in sql.query(rows, "done", where, parameters)]
        count = writer.remove(keys, "removed", "removed on request")
        if wipe:
            for block in [block for block in writer.blocks() if block.alive is not None]:
                writer.merge([block])
    return count
