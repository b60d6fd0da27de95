"""The atlas as tables: one line per head at the terminal; one row per head and text in Parquet."""

from pathlib import Path

from clip_anatomy.errors import MissingExtra, OutputError
from clip_anatomy.naming.atlas import SCHEMA, Atlas, AtlasHead, AtlasText
from clip_anatomy.progress import say, say_drawn

__all__ = ["has_parquet", "print_atlas", "write_parquet"]


COLUMNS = {
    "layer": int, "head": int, "role": str, "confidence": float, "role_source": str, "variance": float, "explained": float,
    "pca_explained": float, "chance": float, "role_chance": float, "by_concept": str, "concept_share": float, "concept_share_others": float, "doubts": list, "truth": str, "truth_share": float, "place": int, "text": str, "property": str,
    "explained_alone": float, "gain": float, "cumulative": float, "runner_up": str, "margin": float, "stability": float,
    "stability_in_place": float, "top_images": list, "bottom_images": list,
}  # fmt: skip
OF_TEXT = (
    "text",
    "property",
    "explained_alone",
    "gain",
    "cumulative",
    "runner_up",
    "margin",
    "stability",
    "stability_in_place",
)


def has_parquet() -> bool:
    """Tell whether Parquet can be written here."""
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
    about = {
        "schema": SCHEMA,
        "model": atlas.model,
        "digest": atlas.digest,
        "pool": atlas.pool,
        "images": str(atlas.images),
    }
    kinds = {int: pa.int32(), float: pa.float64(), str: pa.string(), list: pa.list_(pa.string())}
    fields = [(name, kinds[kind]) for name, kind in COLUMNS.items()]
    rows = [
        dict(zip(COLUMNS, (*_head_values(head), place, *_text_values(text)), strict=True))
        for head in atlas.heads
        for place, text in enumerate(head.texts or (None,))
    ]
    table = pa.Table.from_pylist(rows, schema=pa.schema(fields, metadata=about))
    try:
        pq.write_table(table, path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error}). Type a folder with room: out=NAME") from error


def _head_values(head: AtlasHead) -> tuple[object, ...]:
    role, truth = head.role, head.truth[0] if head.truth else (None, None)
    concept = head.concepts[0][1:] if head.by_concept else (None, None)
    return (
        head.layer, head.head, role.name, role.confidence, role.source, head.variance, head.explained, head.pca_explained,
        head.chance, head.role_chance, head.by_concept, *concept, list(head.doubts), *truth,
    )  # fmt: skip


def _text_values(text: AtlasText | None) -> tuple[object, ...]:
    if text is None:
        return (None,) * (len(OF_TEXT) + 2)
    images = ([image.id for image in text.top_images], [image.id for image in text.bottom_images])
    return (*(getattr(text, name) for name in OF_TEXT), *images)


def _beside(chance: float | None) -> str:
    return "" if chance is None else f" ({chance:.0%})"


def print_atlas(atlas: Atlas) -> None:
    """Print every head on a line: role, how sure, what its texts explain, the first of them; then agreement and cues."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=130)
    title = Text(f"{atlas.model}: {len(atlas.heads)} heads over {atlas.images:,} images")
    table = Table(title=title, title_justify="left", pad_edge=False)
    truth = any(head.truth for head in atlas.heads)
    for name in ("head", "role", "sure", "explained", "texts", *(["in truth"] if truth else [])):
        table.add_column(name, justify="right" if name in ("head", "sure", "explained") else "left")
    for head in atlas.heads:
        sure = f"{head.role.confidence:.0%}{_beside(head.role_chance)}" if head.role.named else ""
        leading = [head.leading.text] if head.leading else []
        cell = Text(" · ".join([*dict.fromkeys([*leading, *(text.text for text in head.texts)])][:2]))
        role = Text(head.role.name.replace("_", " ") + (" ≠" if head.doubts else ""))
        row = [head.name, role, sure, f"{head.explained:.0%}{_beside(head.chance)}", cell]
        table.add_row(*row, *([f"{head.truth[0][0]} {head.truth[0][1]:.0%}" if head.truth else ""] if truth else []))
    say_drawn(console, table)
    if any(head.chance is not None for head in atlas.heads):
        say("In brackets: what texts reach by chance (the same pool, turned at random).")
    if doubted := [head.name for head in atlas.heads if head.doubts]:
        say(f"≠: role, texts, pictures or truth do not agree ({len(doubted)} heads); the page of the head says where.")
    if agreement := atlas.agreement:
        tested, right = int(agreement["tested"]), int(agreement["right"])
        rate = f" ({right / tested:.0%})" if tested else ""
        say(
            f"{right} of {tested}{rate} named heads that one attribute drives (it explains {agreement['bar']:.0%} or more) have it as their "
            f"role; {int(agreement['mixed'])} more are called mixed."
        )
    for cue, answer, why in atlas.cues:
        say(f"{cue}: spurious cue for {atlas.task}? {answer}. {why}")
