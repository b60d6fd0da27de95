"""The atlas as one table, a row per head and text, for programs that like columns."""

from pathlib import Path

from clip_anatomy.errors import MissingExtra, OutputError
from clip_anatomy.naming.atlas import Atlas

__all__ = ["has_parquet", "write_parquet"]


def has_parquet() -> bool:
    """Whether Parquet can be written here."""
    from importlib.util import find_spec

    return find_spec("pyarrow") is not None


def write_parquet(atlas: Atlas, path: Path) -> None:
    """Write `path`: one row per text, with the figures of its head; heads without texts have one row with nulls.

    Raises:
        MissingExtra: pyarrow is not installed.
        OutputError: the place cannot be written.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtra("pyarrow", "atlas") from error
    rows = [
        {
            "layer": head.layer,
            "head": head.head,
            "role": head.role.name,
            "confidence": head.role.confidence,
            "role_source": head.role.source,
            "variance": head.variance,
            "explained": head.explained,
            "ceiling": head.ceiling,
            "truth": head.truth[0][0] if head.truth else None,
            "truth_share": head.truth[0][1] if head.truth else None,
            "place": place,
            "text": None if text is None else text.text,
            "property": None if text is None else text.property,
            "alone": None if text is None else text.alone,
            "gain": None if text is None else text.gain,
            "cumulative": None if text is None else text.cumulative,
            "runner_up": None if text is None else text.runner_up,
            "margin": None if text is None else text.margin,
            "again": None if text is None else text.again,
            "as_early": None if text is None else text.as_early,
            "most": None if text is None else [seen.id for seen in text.most],
            "least": None if text is None else [seen.id for seen in text.least],
        }
        for head in atlas.heads
        for place, text in enumerate(head.texts or (None,))
    ]
    numbers = (
        "confidence",
        "variance",
        "explained",
        "ceiling",
        "truth_share",
        "alone",
        "gain",
        "cumulative",
        "margin",
        "again",
        "as_early",
    )
    kinds = {
        "layer": pa.int32(),
        "head": pa.int32(),
        "place": pa.int32(),
        "most": pa.list_(pa.string()),
        "least": pa.list_(pa.string()),
    }
    fields = [
        (name, kinds.get(name, pa.float64() if name in numbers else pa.string()))
        for name in (rows[0] if rows else {"text": None})
    ]
    about = {
        "schema": "clip-anatomy/atlas/1",
        "model": atlas.model,
        "digest": atlas.digest,
        "pool": atlas.pool,
        "images": str(atlas.images),
    }
    table = pa.Table.from_pylist(rows, schema=pa.schema(fields, metadata=about))
    try:
        pq.write_table(table, path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error}). Type a folder with room: --out NAME") from error
