"""What figures without a picture of their own write into a folder: every number as JSON, and the text for people."""

from pathlib import Path

from clip_anatomy.atomic_output import Kind, as_json, staged
from clip_anatomy.results import Result

__all__ = ["save"]


def save(result: Result, folder: Path) -> Path:
    """Write numbers and text into a folder, whole or not at all.

    Args:
        result: a table of maps, figures of a protocol, sanity or faithfulness.
        folder: to make or to fill.
    """
    name = type(result).__name__.lower()
    numbers = {"schema": f"clip-anatomy/{name}/1", **result.to_dict()}
    with staged(folder, Kind(name, f"{name}.json", numbers["schema"], (f"{name}.json", f"{name}.txt"))) as staging:
        staging.write(f"{name}.json", as_json(numbers))
        staging.write(f"{name}.txt", f"{result.summary()}\n")
    return folder
