"""Sharded stores in a folder: one commit a shard, whoever does it; nothing is written anew, nothing lost, nothing twice."""

import json
import threading

import pytest
from stores import clip, photos  # noqa: F401 (fixtures)

from clip_anatomy.data.open_dataset import open_dataset
from clip_anatomy.errors import BadInput, StoreError
from clip_anatomy.files import digest
from clip_anatomy.objects import ObjectPlace, is_object_url
from clip_anatomy.store.index_shard import ShardWalk, index_shard
from clip_anatomy.store.shards import ShardedStore, committed_shards, missing_shards, open_sharded, read_commit


@pytest.fixture
def place(clip, photos, tmp_path):  # noqa: F811
    return open_sharded(tmp_path / "store", clip, str(photos.resolve()), size=8, batch=4)


def files_under(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_shards_are_committed_in_any_order_and_cover_the_source_once(clip, photos, place, tmp_path):  # noqa: F811
    assert missing_shards(place.place, 3) == [0, 1, 2]
    done = [index_shard(clip, photos, place, number) for number in (2, 0, 1, 3)]
    assert [(one.pictures, one.images, one.committed) for one in done] == [(4, 4, True), (8, 8, True), (8, 8, True), (0, 0, False)]  # fmt: skip
    assert missing_shards(place.place, 4) == [3]
    commits = [read_commit(ObjectPlace.of(place.place), number) for number in (0, 1, 2)]
    named = {f"{one.folder}/{name}" for one in commits for name in one.files} | {one.name for one in commits}
    assert files_under(tmp_path / "store") == named | {"shards.json", "basis.safetensors"}


def test_of_two_who_did_the_same_shard_one_counts_and_the_other_leaves_nothing(clip, photos, place, tmp_path):  # noqa: F811
    first = index_shard(clip, photos, place, 1)
    before = files_under(tmp_path / "store")
    content = (tmp_path / "store" / "commits" / "000001.json").read_bytes()
    second = index_shard(clip, photos, place, 1)
    assert (first.committed, second.committed) == (True, False)
    assert files_under(tmp_path / "store") == before
    assert (tmp_path / "store" / "commits" / "000001.json").read_bytes() == content
    assert first.bytes == second.bytes  # and they would have been the same


def test_arrays_of_a_shard_are_the_same_bytes_whoever_computes_it(clip, photos, place, tmp_path):  # noqa: F811
    other = open_sharded(tmp_path / "other", clip, str(photos.resolve()), size=8, batch=4)
    walk = ShardWalk(open_dataset(photos), 8)
    for number in (0, 1, 2):
        index_shard(clip, walk, place, number, workers=2)
    index_shard(clip, photos, other, 1)
    one, two = (read_commit(ObjectPlace.of(store.place), 1) for store in (place, other))
    arrays = [name for name in one.files if name.startswith("blocks/")]
    assert len(arrays) > 10
    assert [one.files[name] for name in arrays] == [two.files[name] for name in arrays]
    assert (one.ids, one.pictures) == (two.ids, two.pictures)


def test_an_attempt_without_a_commit_is_seen_by_nobody(clip, photos, place, tmp_path, monkeypatch):  # noqa: F811
    put = ObjectPlace.put_if_absent
    monkeypatch.setattr(ObjectPlace, "put_if_absent", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        index_shard(clip, photos, place, 0)
    monkeypatch.setattr(ObjectPlace, "put_if_absent", put)
    assert any(name.startswith("shards/000000-") for name in files_under(tmp_path / "store"))
    assert committed_shards(place.place) == set()
    assert index_shard(clip, photos, place, 0).committed


def test_a_put_whose_answer_got_lost_counts_as_ones_own(tmp_path):
    """The server kept the first put; its repetition is refused, and the content there is ours: losing here would delete a committed shard."""
    place = ObjectPlace.of(tmp_path / "p")
    assert place.put_if_absent("a.json", b"mine")
    assert place.put_if_absent("a.json", b"mine")
    assert not place.put_if_absent("a.json", b"other")
    assert place.get("a.json") == b"mine"
    assert place.get("b.json") is None


def test_of_many_who_put_at_once_one_wins(tmp_path):
    place = ObjectPlace.of(tmp_path / "p")
    won = []
    threads = [
        threading.Thread(target=lambda at=at: won.append((at, place.put_if_absent("a", bytes([at])))))
        for at in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [winner] = [at for at, mine in won if mine]
    assert place.get("a") == bytes([winner])


def test_pictures_that_cannot_be_used_are_rows_of_their_shard(clip, photos, place):  # noqa: F811
    for at in range(8, 16):
        (photos / f"{at:02d}.png").write_bytes(b"nothing")
    done = index_shard(clip, photos, place, 1)
    assert (done.images, done.failed, done.committed) == (0, 8, True)
    assert done.errors[0][0] == "08.png"
    assert (read_commit(ObjectPlace.of(place.place), 1).errors) == 8


def test_a_store_of_another_source_size_or_setting_is_refused_by_name(clip, photos, place, tmp_path):  # noqa: F811
    spec = str(photos.resolve())
    assert open_sharded(tmp_path / "store", clip, spec) == place
    assert open_sharded(tmp_path / "store") == ShardedStore.load(tmp_path / "store") == place
    with pytest.raises(StoreError, match=r"made with size 8, 9 was asked for.*Type the path of a new store"):
        open_sharded(tmp_path / "store", clip, spec, size=9)
    with pytest.raises(StoreError, match=r"made with source .*photos, elsewhere was asked for"):
        open_sharded(tmp_path / "store", clip, "elsewhere")
    with pytest.raises(StoreError, match="made with layers 0,1, 1 was asked for"):
        open_sharded(tmp_path / "store", clip, spec, layers="1")
    with pytest.raises(StoreError, match="is of .*photos, not of world:8:train"):
        index_shard(clip, "world:8", place, 0)
    with pytest.raises(StoreError, match=r"is no store. Make one: clip-anatomy index SOURCE"):
        open_sharded(tmp_path / "nowhere")
    with pytest.raises(StoreError, match="is no sharded store and not empty"):
        open_sharded(photos, clip, spec)
    with pytest.raises(BadInput, match="size"):
        open_sharded(tmp_path / "new", clip, spec, size=0)


@pytest.mark.parametrize(
    "left", [["basis.safetensors#1"], ["basis.safetensors"], ["basis.safetensors", "shards.json#2"]]
)
def test_whoever_comes_while_another_makes_the_store_goes_on_with_it(left, clip, photos, tmp_path):  # noqa: F811
    made = open_sharded(tmp_path / "made", clip, str(photos), size=8)
    (tmp_path / "store").mkdir()
    for name in left:
        content = (tmp_path / "made" / "basis.safetensors").read_bytes()
        (tmp_path / "store" / name).write_bytes(content if name == "basis.safetensors" else content[:9])
    going_on = open_sharded(tmp_path / "store", clip, str(photos), size=8)
    assert going_on.basis == digest((tmp_path / "store" / "basis.safetensors").read_bytes())
    assert going_on.basis == made.basis or "basis.safetensors" not in left  # one that is there is taken


def test_makers_that_start_at_once_agree(clip, photos, tmp_path):  # noqa: F811
    for turn in range(5):
        stores, begin = [], threading.Barrier(4)

        def make(place, begin=begin, stores=stores):
            begin.wait()
            stores.append(open_sharded(place, clip, str(photos), size=8))

        makers = [threading.Thread(target=make, args=(tmp_path / f"{turn}",)) for _ in range(4)]
        for one in makers:
            one.start()
        for one in makers:
            one.join()
        assert len(stores) == 4
        assert all(one == stores[0] for one in stores)


def test_a_damaged_description_or_commit_is_said(clip, photos, place, tmp_path):  # noqa: F811
    index_shard(clip, photos, place, 0)
    commit = tmp_path / "store" / "commits" / "000000.json"
    fields = json.loads(commit.read_text())
    for damaged in ({**fields, "shard": 1}, {**fields, "files": {"../../x": [1, "a"]}}, {**fields, "attempt": "../.."}):
        commit.write_text(json.dumps(damaged))
        with pytest.raises(StoreError, match=r"commits/000000.json cannot be read .* clip-anatomy verify"):
            read_commit(ObjectPlace.of(place.place), 0)
    (tmp_path / "store" / "shards.json").write_text('{"format": "clip-anatomy shards 9"}')
    with pytest.raises(StoreError, match="this version reads 'clip-anatomy shards 1'"):
        ShardedStore.load(tmp_path / "store")


def test_names_of_places(tmp_path):
    assert [is_object_url(name) for name in ("s3://b/x", "gs://b", "az://b", "file:///x", "photos", "s3", 3)] == [True] * 4 + [False] * 3  # fmt: skip
    assert ObjectPlace.of("s3:/bucket/store/").url == "s3://bucket/store"  # what a Path leaves of an address
    assert ObjectPlace.of(f"file://{tmp_path}/a%20b").url == f"{tmp_path}/a b"
    with pytest.raises(BadInput, match=r"names no bucket. Type s3://BUCKET/PREFIX"):
        ObjectPlace.of("s3://")
