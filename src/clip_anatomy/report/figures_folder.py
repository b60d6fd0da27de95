"""What figures without a picture of their own write into a folder: every number as JSON, and the text for people."""

from pathlib import Path

from clip_anatomy.atomic_output import Kind, as_json, atomic_output
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
    with atomic_output(
        folder, Kind(name, f"{name}.json", numbers["schema"], (f"{name}.json", f"{name}.txt"))
    ) as output:
        output.write(f"{name}.json", as_json(numbers))
        output.write(f"{name}.txt", f"{result.summary()}\n")
    return folder
