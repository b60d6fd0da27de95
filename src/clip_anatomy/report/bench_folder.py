"""What `bench(...).save(folder)` writes: bench.json with every number, and bench.txt for people."""

from pathlib import Path

from clip_anatomy.atomic_output import Kind, as_json, staged
from clip_anatomy.results import Result

__all__ = ["save"]

KIND = Kind("figures", "bench.json", "clip-anatomy/bench", ("bench.json", "bench.txt"))


def save(result: Result, folder: Path) -> Path:
    """Write numbers and text into a folder, whole or not at all."""
    with staged(folder, KIND) as staging:
        staging.write("bench.json", as_json(result.to_dict()))
        staging.write("bench.txt", f"{result.summary()}\n")
    return folder
