"""A sharded store on a real S3 server: any number of writers, one store; every verb reads it as it reads any other."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from buckets import few_retries, proxy, s3, s3_server  # noqa: F401 (fixtures)
from stores import clip, photos, same, saved  # noqa: F401 (fixtures)

import clip_anatomy as ca
from clip_anatomy.cli.main import main
from clip_anatomy.data.picture import Picture
from clip_anatomy.errors import BadSpec, ObjectStoreError, StoreError
from clip_anatomy.objects import ObjectPlace
from clip_anatomy.store import remote_blocks
from clip_anatomy.store.claims import claimed, sweep_attempts
from clip_anatomy.store.index import index
from clip_anatomy.store.index_shard import index_shard
from clip_anatomy.store.remove import remove
from clip_anatomy.store.shards import committed_shards, open_sharded, read_commit
from clip_anatomy.store.store import Store
from clip_anatomy.store.verify import verify

pytestmark = pytest.mark.usefixtures("few_retries")


@pytest.fixture
def place(s3, clip, photos):  # noqa: F811
    """A store of twenty pictures in three shards that are to be done."""
    return open_sharded(f"{s3}/store", clip, str(photos.resolve()), size=8, batch=4).place


@pytest.fixture
def alone(clip, photos, tmp_path):  # noqa: F811
    """The same by one process on one machine."""
    index(clip, photos, tmp_path / "alone", batch=4)
    return tmp_path / "alone"


def test_it_equals_the_store_of_one_machine_and_every_array_is_brought_once(clip, photos, place, alone, proxy):  # noqa: F811
    done = index(clip, photos, place)
    assert (done.done, done.failed, done.known, done.shards, done.store) == (20, 0, 0, 3, place)
    assert same(place, alone)
    store = Store.open(place, clip)
    assert store.path.parent == remote_blocks.catalogues()
    assert store.sources == (str(photos.resolve()),)
    assert verify(place).holds
    assert verify(store.path).store == place
    store.heads(1, 1)
    asked = proxy.asked["GET"]
    Store.open(place).heads(1, 1)
    assert proxy.asked["GET"] == asked + 2  # shards.json, and a list of commits


def test_a_damaged_catalogue_is_made_again(clip, photos, place):  # noqa: F811
    index(clip, photos, place)
    path = Store.open(place).path / "rows.sqlite"
    path.write_bytes(b"damaged" * 1000)
    assert len(Store.open(place).rows()) == 20


def test_again_finds_nothing_to_do_and_nothing_is_written(clip, photos, place, proxy):  # noqa: F811
    index(clip, photos, place)
    written = dict(ObjectPlace.of(place).names())
    again = index(clip, photos, place)
    assert (again.done, again.known, again.shards) == (0, 3, 0)
    assert dict(ObjectPlace.of(place).names()) == written
    assert not [name for name in written if name.startswith("claims/")]


def test_shards_that_come_later_are_taken_in_whatever_their_order(clip, photos, place, alone):  # noqa: F811
    index_shard(clip, photos, place, 2)
    first = Store.open(place)
    assert [row.id for row in first.rows()] == [f"{at:02d}.png" for at in range(16, 20)]
    moments = first.moments()
    index_shard(clip, photos, place, 0)
    second = Store.open(place)
    assert len(second) == 12
    with pytest.raises(StoreError, match="was changed since it was opened"):
        first.rows()
    assert second.moments().count == 12
    assert moments.count == 4
    index_shard(clip, photos, place, 1)
    assert same(place, alone)


def test_moments_per_group_come_from_the_shards_where_they_kept_them(clip, photos, tmp_path, s3):  # noqa: F811
    pictures = [
        Picture(f"{at}", photos / f"{at:02d}.png", None, group="ab"[at % 2] if at < 12 else "c") for at in range(20)
    ]

    class Grouped:
        spec = "grouped"

        def __iter__(self):
            return iter(pictures)

        def count(self):
            return len(pictures)

        def check(self):
            pass

        def fetch(self, path):
            return Path(path)

    open_sharded(f"{s3}/g", clip, "grouped", size=4, batch=4)
    index(clip, Grouped(), f"{s3}/g")
    index(clip, Grouped(), tmp_path / "g", batch=4)
    one, two = Store.open(f"{s3}/g"), Store.open(tmp_path / "g")
    assert one.values("group") == ("a", "b", "c")
    m, n = one.moments("group"), two.moments("group")
    assert not any(path.name == "0" for path in one.path.rglob("heads/c/*/0/0/*"))  # no array was brought
    assert torch.equal(m.counts, n.counts)
    assert m.groups == n.groups
    assert torch.allclose(m.means, n.means, atol=1e-14)
    assert torch.allclose(m.scatters, n.scatters, atol=1e-13)


def test_a_picture_that_comes_twice_is_one_image(clip, photos, tmp_path, s3):  # noqa: F811
    names = [photos / f"{at:02d}.png" for at in (0, 1, 2, 3, 4, 1, 5, 6, 7, 0)]
    (tmp_path / "list.txt").write_text("\n".join(map(str, names)))
    place = open_sharded(f"{s3}/twice", clip, str((tmp_path / "list.txt").resolve()), size=4, batch=4).place
    done = index(clip, tmp_path / "list.txt", place)
    index(clip, tmp_path / "list.txt", tmp_path / "alone", batch=4)
    one, two = Store.open(place), Store.open(tmp_path / "alone")
    assert [row.id for row in one.rows()] == [row.id for row in two.rows()]
    assert (len(one), done.done) == (8, 10)
    assert (one.heads(1, 0).float() - two.heads(1, 0).float()).abs().max() < 1e-3  # other pictures stood beside them
    assert one.moments().count == 8
    assert torch.allclose(one.moments().mean, two.moments().mean, atol=1e-5)


def test_pictures_that_cannot_be_used_are_rows(clip, photos, place, tmp_path):  # noqa: F811
    (photos / "09.png").write_bytes(b"no picture")
    done = index(clip, photos, place)
    assert (done.done, done.failed, done.errors[0][0]) == (19, 1, "09.png")
    index(clip, photos, tmp_path / "alone", batch=4)
    assert same(place, tmp_path / "alone")
    one, two = Store.open(place).rows(status="error"), Store.open(tmp_path / "alone").rows(status="error")
    assert [(row.id, row.error) for row in one] == [(row.id, row.error) for row in two]
    assert verify(place).errors == 1


def test_verify_finds_what_is_wrong_with_the_objects_themselves(clip, photos, place):  # noqa: F811
    index(clip, photos, place)
    at = ObjectPlace.of(place)
    one, two, three = (read_commit(at, number) for number in range(3))
    array = "blocks/000001/heads/c/1/0/0/0"
    name = next(name for name in two.files if name.startswith("blocks") and name.endswith("heads/c/1/0/0/0"))
    content = bytearray(at.get(f"{two.folder}/{name}") or b"")
    content[7] ^= 1
    at.put(f"{two.folder}/{name}", bytes(content))
    at.put(f"{three.folder}/{next(n for n in three.files if n.startswith('moments'))}", b"short")
    at.delete([f"{one.folder}/rows.sqlite"])
    at.put("shards/000001-0123456789abcdef/rows.sqlite", b"of a killed run")
    found = verify(place)
    assert len(found.problems) == 3
    assert any("rows.sqlite is not there" in problem for problem in found.problems)
    assert f"{two.folder}/{name}: its bytes are not those that were written" in found.problems
    assert any("moments" in problem and "5 bytes instead of" in problem for problem in found.problems)
    assert found.notes == ("shards/000001-0123456789abcdef belongs to no commit (a killed or slower run left it); the next index run deletes it",)  # fmt: skip
    assert (found.images, array.startswith("blocks")) == (20, True)


def test_a_damaged_array_is_refused_when_it_is_read(clip, photos, place):  # noqa: F811
    index(clip, photos, place)
    at = ObjectPlace.of(place)
    commit = read_commit(at, 1)
    name = next(name for name in commit.files if name.endswith("heads/c/1/0/0/0"))
    at.put(f"{commit.folder}/{name}", b"x" * commit.files[name][0])
    store = Store.open(place)
    store.heads(0, 0)
    with pytest.raises(ObjectStoreError, match=r"heads/c/1/0/0/0: its bytes are not those that were written"):
        store.heads(1, 0)
    assert len(store.heads(0, 1)) == 20


def test_what_killed_attempts_left_is_swept_and_what_is_under_way_is_not(clip, photos, place):  # noqa: F811
    at = ObjectPlace.of(place)
    for number in (0, 1):
        at.put(f"shards/{number:06d}-0123456789abcdef/rows.sqlite", b"part")
    index_shard(clip, photos, place, 0)
    assert sweep_attempts(at) == 1
    left = [name for name in at.folders("shards/") if name.endswith("0123456789abcdef")]
    assert left == ["000001-0123456789abcdef"]
    index(clip, photos, place)
    assert len(at.folders("shards/")) == 3


def test_a_source_that_has_changed_is_refused(clip, photos, place):  # noqa: F811
    index(clip, photos, place)
    shutil.copy(photos / "00.png", photos / "99.png")
    with pytest.raises(StoreError, match=r"holds 21 pictures, others than when shard 2 of s3://\S+ was made.*path of a new store"):  # fmt: skip
        index(clip, photos, place)
    (photos / "99.png").unlink()
    (photos / "03.png").unlink()
    with pytest.raises(StoreError, match="holds 19 pictures, others than when shard 2"):
        index(clip, photos, place)


def test_what_would_write_it_anew_is_refused_in_one_sentence(clip, photos, place, tmp_path):  # noqa: F811
    (tmp_path / "labels.csv").write_text("path,label\n00.png,cat\n")
    for options in ({"labels": tmp_path / "labels.csv"}, {"prune": True}):
        with pytest.raises(BadSpec, match="is a sharded store, which is never written anew, .* Leave prune=, labels= and workers= out"):  # fmt: skip
            index(clip, photos, place, **options)
    index(clip, photos, place)
    for where in (place, Store.open(place).path):
        with pytest.raises(StoreError, match="is a sharded store, which is never written anew"):
            remove(where, ids=["00.png"])


def test_a_bucket_that_stops_answering_costs_the_shard_under_way_alone(clip, photos, place, proxy, alone):  # noqa: F811
    index_shard(clip, photos, place, 0)
    proxy.fault = lambda method, *_: (503, "SlowDown") if method == "PUT" else None
    with pytest.raises(ObjectStoreError, match="does not serve requests at the moment"):
        index(clip, photos, place)
    assert committed_shards(place) == {0}
    proxy.fault = lambda method, path, before: "lose answer" if method == "PUT" and "/commits/" in path and before % 2 else None  # fmt: skip
    done = index(clip, photos, place)
    assert (done.done, done.known) == (12, 1)
    assert same(place, alone)
    assert verify(place).holds


def test_a_claim_of_a_process_that_was_killed_is_done_at_the_end(clip, photos, place):  # noqa: F811
    at = ObjectPlace.of(place)
    at.put_if_absent("claims/000000.json", b"{}")
    assert list(claimed(at, [0, 1, 2])) == [1, 2, 0]
    assert index(clip, photos, place).done == 20
    assert not list(at.names("claims/"))


WRITER = """
import sys, time
import clip_anatomy as ca
from clip_anatomy.store.index import index
clip = ca.load(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
done = index(clip, sys.argv[2], sys.argv[3])
print(done.done, done.known, done.others, flush=True)
"""
READER = """
import sys
import clip_anatomy as ca
found = ca.search(sys.argv[1], sys.argv[2], heads="1.0,1.1", k=3)
print(*(hit.row.id for hit in found.hits), ca.verify(sys.argv[1]).holds)
"""


def started(code, *words, cache):
    environment = {**os.environ, "CLIP_ANATOMY_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", code, *map(str, words)], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")  # as the other processes: the last bits depend on it
def test_three_processes_make_one_store_and_a_fourth_searches_and_verifies_it(s3, proxy, photos, saved, tmp_path):  # noqa: F811
    spec = str(saved)
    model = ca.load(spec)
    place = open_sharded(f"{s3}/store", model, str(photos.resolve()), size=2, batch=2).place
    writers = [started(WRITER, spec, photos, place, cache=tmp_path / f"cache{at}") for at in range(3)]
    for one in writers:
        assert one.stdout.readline() == "ready\n"
    for one in writers:
        one.stdin.write("\n")
        one.stdin.flush()
    said = [[int(word) for word in one.communicate(timeout=120)[0].split()] for one in writers]
    assert sum(done for done, _, _ in said) == 20  # nothing lost, nothing twice
    assert committed_shards(place) == set(range(10))
    index(model, photos, tmp_path / "alone", batch=2)
    fourth = started(READER, place, photos / "07.png", cache=tmp_path / "empty")
    found = fourth.communicate(timeout=120)[0].split()
    assert found == [
        *(hit.row.id for hit in ca.search(tmp_path / "alone", photos / "07.png", heads="1.0,1.1", k=3).hits),
        "True",
    ]
    assert same(place, tmp_path / "alone")
    assert len(ObjectPlace.of(place).folders("shards/")) == 10  # losers left nothing


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")  # as the other processes: the last bits depend on it
def test_a_writer_that_is_killed_or_stopped_is_gone_on_with(s3, proxy, photos, saved, tmp_path):  # noqa: F811
    spec = str(saved)
    place = open_sharded(f"{s3}/store", ca.load(spec), str(photos.resolve()), size=2, batch=2).place
    for end in (signal.SIGKILL, signal.SIGTERM):
        one = started(WRITER, spec, photos, place, cache=tmp_path / "cache")
        one.stdout.readline()
        one.stdin.write("\n")
        one.stdin.flush()
        before = len(committed_shards(place))
        while len(committed_shards(place)) < before + 2:
            time.sleep(0.02)
        one.send_signal(end)
        one.communicate(timeout=60)
    assert 4 <= len(committed_shards(place)) < 10
    model = ca.load(spec)
    index(model, photos, place)
    index(model, photos, tmp_path / "alone", batch=2)
    assert same(place, tmp_path / "alone")
    assert verify(place).notes == ()


def test_from_the_command_line(photos, s3, saved, tmp_path, capsys):  # noqa: F811
    place, model = f"{s3}/typed", str(saved)
    assert main(["index", str(photos), place, "--model", model]) == 0
    assert f"{place}: 20 images in 1 shard added" in capsys.readouterr().out
    assert main(["search", place, str(photos / "03.png"), "--heads", "1.0,1.1", "-k", "2"]) == 0
    assert "03.png" in capsys.readouterr().out
    assert main(["verify", place]) == 0
    assert f"{place}: 20 images in" in capsys.readouterr().out
    assert main(["index", str(photos), place, "--prune"]) == 2
    assert "is a sharded store, which is never written anew" in capsys.readouterr().err
    assert main(["verify", f"{s3}/nothing"]) == 2
    assert f"{s3}/nothing is no store. Make one: clip-anatomy index SOURCE {s3}/nothing" in capsys.readouterr().err
    assert main(["index", str(photos), f"file://{tmp_path}/folder", "--model", model]) == 0
    assert same(tmp_path / "folder", place)
