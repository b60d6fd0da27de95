"""Output is there whole or not at all."""

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import pytest

from clip_anatomy import atomic_output as atomic
from clip_anatomy import report
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


def test_every_kind_of_drawing_is_known_where_pictures_are_looked_for(tmp_path: Path) -> None:
    """What a verb drew is no picture of a collection that its folder stands in."""
    modules = [import_module(f"clip_anatomy.report.{one.name}") for one in iter_modules(report.__path__)]
    kinds = {kind for module in modules for kind in vars(module).values() if isinstance(kind, atomic.Kind)}
    assert len(kinds) > 10
    assert {kind.mark for kind in kinds} == set(atomic.MARKS)
    for kind in kinds:
        folder = tmp_path / kind.noun
        folder.mkdir()
        (folder / kind.mark).write_text(f'{{"schema": "{kind.schema}"}}')
        assert atomic.made_here(folder, [kind.mark])
