"""Output is there whole or not at all."""

from pathlib import Path

import pytest

from clip_anatomy import atomic_output as atomic
from clip_anatomy.errors import OutputError

KIND = atomic.Kind("report", "explain.json", "clip-anatomy/explain/1")


@pytest.mark.parametrize("exists", [True, False])
def test_nothing_is_left_after_an_error(exists: bool, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if exists:
        out.mkdir()

    def stopped() -> None:
        with atomic.atomic_output(out, KIND) as place:
            place.write("half.txt", "half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert [p.name for p in tmp_path.rglob("*")] == (["out"] if exists else [])


def test_a_folder_that_vanishes_is_an_output_error(tmp_path: Path) -> None:
    with atomic.atomic_output(tmp_path / "out", KIND) as place:
        place.folder.rmdir()
        with pytest.raises(OutputError, match="cannot be written"):
            place.write("a.txt", "x")
        place.folder.mkdir()
