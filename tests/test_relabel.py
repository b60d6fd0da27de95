"""`index --labels` on a store that knows its pictures writes their rows anew and reads no picture; a table goes over any collection."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import clip_anatomy as ca
from clip_anatomy.cli.main import main
from clip_anatomy.data.open_dataset import open_dataset
from clip_anatomy.errors import BadInput
from clip_anatomy.store.store import Store

pytestmark = pytest.mark.usefixtures("one_thread")
CLIP = ca.load("demo", parity=False)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("cat/a.png", "cat/b.png", "dog/c.png"):
        (tmp_path / "p" / name).parent.mkdir(parents=True, exist_ok=True)
        seed = np.random.default_rng(ord(name[4]))
        Image.fromarray(seed.integers(0, 255, (40, 50, 3), np.uint8)).save(tmp_path / "p" / name)
    (tmp_path / "labels.csv").write_text(
        "path,label,group,caption,year\ncat/a.png,lynx,north,a lynx,1999\nc.png,,south,,2001\n"
    )
    return tmp_path / "p"


def rows(store: Path) -> dict[str, tuple[Any, ...]]:
    return {row.id: (row.label, row.group, row.captions, dict(row.meta)) for row in Store.open(store).rows()}


def test_known_images_get_labels_and_no_picture_is_read(
    photos: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    store = tmp_path / "s"
    ca.index(CLIP, photos, store)
    before = Store.open(store)
    by_group = before.moments(groups="group")

    def read(*_: object) -> None:
        raise AssertionError("a picture was read")

    monkeypatch.setattr("clip_anatomy.store.index_run.decode", read)
    assert main(["index", str(photos), str(store), "--labels", str(tmp_path / "labels.csv")]) == 0
    assert "2 labelled anew" in capsys.readouterr().out
    assert rows(store) == {
        "cat/a.png": ("lynx", "north", ("a lynx",), {"year": "1999"}),
        "cat/b.png": ("cat", "", (), {}),
        "dog/c.png": ("dog", "south", (), {"year": "2001"}),
    }
    assert ca.verify(store).holds
    after = Store.open(store)
    assert after.values("group") == ("", "north", "south")
    moments = after.moments(groups="group")
    assert (by_group.means.shape[0], moments.means.shape[0]) == (1, 3)
    for group, place in (("north", 0), ("south", 2)):
        (at,) = [k for k, code in enumerate(moments.groups) if after.values("group")[code] == group]
        torch.testing.assert_close(moments.means[at, 0, 0, 0], after.heads(0, 0)[place].double())


def test_a_run_without_a_table_leaves_what_a_table_said(photos: Path, tmp_path: Path) -> None:
    store = tmp_path / "s"
    first = ca.index(CLIP, photos, store, labels=tmp_path / "labels.csv")
    assert (first.done, first.relabelled) == (3, 0)
    said = rows(store)
    assert ca.index(CLIP, photos, store).relabelled == 0
    assert rows(store) == said
    (photos / "metadata.csv").write_text("file_name,label\nb.png,tiger\n")
    assert ca.index(CLIP, photos, store).relabelled == 1
    assert rows(store) == said | {"cat/b.png": ("tiger", "", (), {})}


def test_a_table_goes_over_lists_worlds_and_absolute_paths(photos: Path, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text(f"path,label\nworld-0-test-1,mine\n{photos}/cat/b.png,lynx\n")
    assert [one.label for one in open_dataset("world:2:test", table)][1] == "mine"
    by_path = {str(one.data): one.label for one in open_dataset([photos / "cat"], table)}
    assert by_path == {f"{photos}/cat/a.png": "", f"{photos}/cat/b.png": "lynx"}
    assert {one.id: one.label for one in open_dataset(photos, table)} == {
        "cat/a.png": "cat",
        "cat/b.png": "lynx",
        "dog/c.png": "dog",
    }
    table.write_text("path,label\nnothing.png,x\n")
    with pytest.raises(BadInput, match=r"no row of .*t\.csv .*names a picture of world:2:test"):
        list(open_dataset("world:2:test", table))
