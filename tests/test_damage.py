"""Damaged things are named: masks, embeddings in the cache, rows of a store, blocks that may not be read."""

import json
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stores import clip, photos

from clip_anatomy.cli.main import main
from clip_anatomy.data.coco import decoded
from clip_anatomy.errors import StoreError
from clip_anatomy.loading.disk_cache import DiskCache
from clip_anatomy.store.index import index
from clip_anatomy.store.store import Store
from clip_anatomy.store.verify import verify

__all__ = ["clip", "photos"]  # fixtures
SIZE = (5, 4)


def runs_of(mask: np.ndarray) -> list[int]:
    flat = mask.T.ravel()
    edges = [0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), flat.size]
    counts = np.diff(edges).tolist()
    return [0, *counts] if flat[0] else counts


def test_run_lengths_are_what_pycocotools_makes_of_them() -> None:
    native = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(0)
    for share in rng.random(40):
        size = tuple(int(side) for side in rng.integers(1, 70, 2))
        mask = (rng.random(size) < share).astype(np.uint8)
        letters = native.encode(np.asfortranarray(mask))["counts"].decode()
        assert (decoded({"size": [*size], "counts": letters}, size) == mask).all()
        assert (decoded({"size": [*size], "counts": runs_of(mask)}, size) == mask).all()


@pytest.mark.parametrize(
    "shape",
    [
        {"size": [5, 4], "counts": [10]},  # the rest of the picture would be whatever is in memory
        {"size": [5, 4], "counts": [10, 1_000_000]},
        {"size": [5, 4], "counts": [30, -10]},
        {"size": [4, 5], "counts": [20]},
        {"size": [5, 4], "counts": ""},
        {"size": [5, 4], "counts": "ooooooooooo"},
        {"size": [5, 4], "counts": "ooooooooooo1"},
        {"size": [5, 4], "counts": "é"},
        {"size": [5, 4], "counts": None},
        [[0, 0, 1e9, 0, 1e9, 1e9]],
        [[0, 0, float("nan"), 0, 1, 1]],
        [[0, 0, 1, 1]],
        [[0, 0, 1, 1, 2, 2, 3]],
        [["a"] * 6],
        [5],
    ],
)
def test_masks_that_do_not_fit_the_picture_are_refused_before_native_code_sees_them(shape: Any) -> None:
    pytest.importorskip("pycocotools")
    with pytest.raises((ValueError, TypeError, AttributeError)):
        decoded(shape, SIZE)


def test_one_bad_annotation_is_skipped_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pycocotools")
    from PIL import Image

    for folder in ("val2017", "annotations"):
        (tmp_path / folder).mkdir()
    images, annotations = [], []
    shapes = [{"counts": [10], "size": [50, 60]}, [[0, 0, 1e9, 0, 1e9, 1e9]], [[1, 1, 30, 1, 30, 30]]]
    for at, shape in enumerate(shapes):
        Image.new("RGB", (60, 50), (9 * at, 99, 9)).save(tmp_path / "val2017" / f"{at}.jpg")
        images.append({"id": at, "file_name": f"{at}.jpg", "height": 50, "width": 60})
        annotations.append({"id": at, "image_id": at, "category_id": 1, "area": 9, "segmentation": shape})
    given = {"images": images, "annotations": annotations, "categories": []}
    (tmp_path / "annotations" / "instances_val2017.json").write_text(json.dumps(given))
    assert main(["bench", "coco-object", str(tmp_path), "--json", "--prompts", "1"]) == 0
    skipped = json.loads(capsys.readouterr().out)["skipped"]
    assert [one["id"] for one in skipped] == ["0.jpg", "1.jpg"]
    assert "cover 10 of 3000 pixels" in skipped[0]["why"]


@pytest.mark.parametrize("value", [None, 7, "text", b"", b"\0" * 40])
def test_a_cache_gives_only_what_was_put_in(value: Any, tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "a.sqlite")
    cache.put({"one": b"1" * 40, "two": b"2" * 40})
    database = sqlite3.connect(tmp_path / "a.sqlite")
    ((kept,),) = database.execute("SELECT value FROM kept WHERE name = 'two'").fetchall()
    database.execute("CREATE TABLE loose (name TEXT PRIMARY KEY, value)")
    database.execute("INSERT INTO loose VALUES ('one', ?), ('two', ?)", (value, kept[:-1] + b"3"))
    database.executescript("DROP TABLE kept; ALTER TABLE loose RENAME TO kept")
    database.close()
    assert cache.get(["one", "two"]) == {}
    cache.put({"one": b"1" * 40})
    assert cache.get(["one"]) == {"one": b"1" * 40}


DAMAGE = {
    "files": "UPDATE blocks SET files = '['",
    "files of another kind": "UPDATE blocks SET files = '[3]'",
    "about": "UPDATE kept SET about = '['",
    "about elsewhere": "UPDATE kept SET about = replace(about, 'all-', '../all-')",
    "place": "UPDATE images SET place = 'x'",
    "label": "UPDATE images SET label = x'fffe'",
    "count": "UPDATE blocks SET count = 'x'",
    "captions": "UPDATE images SET captions = '[[[['",
    "meta": "UPDATE images SET meta = '3'",
}


@pytest.mark.parametrize("name", DAMAGE)
def test_verify_names_damage_in_rows_and_reading_them_is_one_error(
    name: str, clip, photos: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    index(clip, photos, store)
    database = sqlite3.connect(store / "rows.sqlite")
    database.execute(DAMAGE[name])
    database.commit()
    database.close()
    problems = verify(store).problems
    assert problems
    assert all("rows.sqlite" in one or "blocks/" in one for one in problems)
    with suppress(StoreError):  # or they are as they were: moments are taken from the arrays again
        opened = Store.open(store)
        opened.rows()
        opened.moments()


def test_a_block_that_may_not_be_read_is_one_error(
    clip, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    index(clip, photos, store)
    opened = Store.open(store)

    def refused(path: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("clip_anatomy.store.blocks.opened", refused)
    with pytest.raises(
        StoreError, match=r"cannot be read \(PermissionError.*Type|cannot be read \(PermissionError.*type: clip"
    ):
        opened.heads(0, 0)
