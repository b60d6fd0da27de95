"""Runs that stay mapped: the same numbers, let go when there are too many, mapped anew when a file was replaced."""

import numpy as np
import pytest

from clip_anatomy.errors import StoreError
from clip_anatomy.store import blocks


def fine(path):
    if not path.exists():
        raise StoreError(f"{path} is missing")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "numbers"
    np.arange(10_000, dtype=np.float16).tofile(path)
    return path


@pytest.mark.parametrize("first", [0, 2, 4096, 8190, 12_346])
def test_any_place_of_a_file(file, first):
    expected = np.fromfile(file, np.float16)[first // 2 : first // 2 + 100]
    assert np.array_equal(blocks.mapped(file, np.float16, 100, first), expected)
    assert np.array_equal(blocks.mapped_and_cached(str(file), np.float16, 100, first, fine), expected)
    assert blocks.mapped_and_cached(str(file), np.float16, 100, first, fine) is blocks.mapped_and_cached(
        str(file), np.float16, 100, first, fine
    )


def test_what_is_written_into_the_array_never_reaches_the_file(file):
    before = file.read_bytes()
    blocks.mapped(file, np.float16, 100)[:] = 7
    assert file.read_bytes() == before


def test_the_runs_asked_for_longest_ago_are_let_go(file, monkeypatch):
    monkeypatch.setattr(blocks, "_CACHE", type(blocks._CACHE)())
    monkeypatch.setattr(blocks, "CACHE_BYTES", 1000)
    runs = [blocks.mapped_and_cached(str(file), np.float16, 200, 400 * at, fine) for at in range(5)]
    assert sum(run.nbytes for run in blocks._CACHE.values()) <= 1000
    assert blocks.mapped_and_cached(str(file), np.float16, 200, 1600, fine) is runs[4]
    assert blocks.mapped_and_cached(str(file), np.float16, 200, 0, fine) is not runs[0]
    assert np.array_equal(runs[0], np.arange(200, dtype=np.float16)), (
        "who holds a run that was let go can still read it"
    )


def test_a_file_that_was_replaced_is_mapped_anew_and_a_missing_one_is_named(file, tmp_path):
    old = blocks.mapped_and_cached(str(file), np.float16, 100, 0, fine)
    other = tmp_path / "other"
    np.full(10_000, 3, np.float16).tofile(other)
    other.replace(file)
    assert (blocks.mapped_and_cached(str(file), np.float16, 100, 0, fine) == 3).all()
    assert old[5] == 5
    file.unlink()
    with pytest.raises(StoreError, match="is missing"):
        blocks.mapped_and_cached(str(file), np.float16, 100, 0, fine)
