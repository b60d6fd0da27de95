"""Pictures in a bucket: prefixes, tars, tables and Parquet read as those of a folder are; a bucket that fails is no bad picture."""

import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from buckets import few_retries, proxy, s3, s3_server  # noqa: F401 (fixtures)
from pictures import encoded, noise
from stores import clip, photos, same  # noqa: F401 (fixtures)

import clip_anatomy as ca
from clip_anatomy.data.object_pictures import expanded
from clip_anatomy.data.open_dataset import is_collection, open_dataset, picture_of
from clip_anatomy.data.picture import ObjectFile, read_data
from clip_anatomy.data.picture_batches import embedded_pictures
from clip_anatomy.errors import BadImage, BadInput, ObjectStoreError
from clip_anatomy.objects import ObjectPlace
from clip_anatomy.store.index import index
from clip_anatomy.store.index_shard import ShardWalk, index_shard
from clip_anatomy.store.shards import committed_shards, open_sharded
from clip_anatomy.store.store import Store

pytestmark = pytest.mark.usefixtures("few_retries")


@pytest.fixture
def bucket(s3):  # noqa: F811
    return ObjectPlace.of(s3)


def png(seed):
    return encoded(noise(30 + seed, 33), "PNG")


def said(source):
    return [(p.id, p.label, p.group, p.captions, dict(p.meta)) for p in source]


def tar_of(samples):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in samples.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def test_a_prefix_is_read_as_a_folder_is(bucket, tmp_path, clip):  # noqa: F811
    files = {f"photos/{kind}/{at}.png": png(at) for at, kind in enumerate(("cat", "cat", "dog"))}
    files |= {"photos/readme.txt": b"words", "photos/.hidden.png": png(1)}
    files["photos/metadata.csv"] = b"path,label,group,caption\ncat/1.png,tiger,indoors,a tiger\n"
    for name, content in files.items():
        bucket.put(name, content)
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    url = f"{bucket.url}/photos/"
    here, there = open_dataset(tmp_path / "photos"), open_dataset(url)
    assert said(there) == said(here)
    assert dict(there.passed_over) == {"no picture: .txt": 1, "hidden": 1}
    assert there.spec == f"{bucket.url}/photos"
    index(clip, tmp_path / "photos", tmp_path / "one", batch=4)
    index(clip, url, tmp_path / "two", batch=4)
    assert same(tmp_path / "one", tmp_path / "two")
    row = Store.open(tmp_path / "two").rows()[0]
    with pytest.raises(BadImage, match="named by a file, not by you"):
        picture_of(row.source, row.path, row.id)
    with ca.allow_network():
        assert picture_of(row.source, row.path, row.id).size == (30, 33)


def test_what_a_store_knows_is_not_downloaded_again(bucket, tmp_path, clip, proxy):  # noqa: F811
    for at in range(6):
        bucket.put(f"p/{at}.png", png(at))
    index(clip, f"{bucket.url}/p", tmp_path / "store", batch=2)
    asked = proxy.asked["GET"]
    again = index(clip, f"{bucket.url}/p", tmp_path / "store", batch=2)
    assert (again.known, again.done) == (6, 0)
    assert proxy.asked["GET"] - asked < 12  # tables that are not there, and listings


def test_tars_are_streams(bucket, tmp_path, clip):  # noqa: F811
    for at in range(3):
        samples = {f"{at}{one}.png": png(10 * at + one) for one in range(2)}
        samples |= {f"{at}0.json": json.dumps({"label": f"l{at}", "text": "words"}).encode()}
        content = tar_of(dict(sorted(samples.items())))
        bucket.put(f"t/{at:03d}.tar", content)
        (tmp_path / f"{at:03d}.tar").write_bytes(content)
    here = said(open_dataset(tmp_path / "*.tar"))
    for pattern in ("t", "t/*.tar", "t/{000..002}.tar"):
        assert said(open_dataset(f"{bucket.url}/{pattern}")) == here
    assert len(said(open_dataset(f"{bucket.url}/t/{{001..001}}.tar"))) == 2
    source = open_dataset(f"{bucket.url}/t")
    assert source.fetch("001.tar#11.png") == png(11)
    with pytest.raises(BadImage, match="none.png is not in"):
        source.fetch("001.tar#none.png")
    with pytest.raises(ObjectStoreError, match="is not there"):
        list(open_dataset(f"{bucket.url}/t/{{002..004}}.tar"))
    place = open_sharded(tmp_path / "store", clip, source.spec, size=4, batch=2)
    index(clip, source, place.place)
    index(clip, tmp_path / "*.tar", tmp_path / "alone", batch=2)
    assert same(place.place, tmp_path / "alone")


def test_tables_and_parquet_here_and_there(bucket, tmp_path):
    for at in range(5):
        bucket.put(f"d/images/{at}.png", png(at))
    bucket.put("d/list.csv", b"path,label\nimages/3.png,a\nimages/1.png,b\n")
    bucket.put("d/list.jsonl", b'{"path": "%s/d/images/2.png", "group": "g"}\n' % bucket.url.encode())
    assert said(open_dataset(f"{bucket.url}/d/list.csv")) == [("images/3.png", "a", "", (), {}), ("images/1.png", "b", "", (), {})]  # fmt: skip
    [absolute] = open_dataset(f"{bucket.url}/d/list.jsonl")
    assert absolute.data.read() == png(2)
    rows = [{"image": {"bytes": png(at), "path": None}, "label": f"l{at}", "caption": "words", "width": 33} for at in range(5)]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=2)
    bucket.put("q/a.parquet", tmp_path / "a.parquet")
    bucket.put("q/b.parquet", tmp_path / "a.parquet")
    here, there = open_dataset(tmp_path / "a.parquet"), open_dataset(f"{bucket.url}/q")
    assert said(here) == [(f"a/{at}", f"l{at}", "", ("words",), {"width": 33}) for at in range(5)]
    assert said(there)[:5] == said(here)
    assert (here.count(), there.count(), len(said(there))) == (5, 10, 10)
    assert there.fetch("b.parquet#3") == png(3) == next(p.data for p in here if p.id == "a/3")
    with pytest.raises(BadImage, match="has no row 9"):
        here.fetch("a.parquet#9")
    pq.write_table(pa.table({"path": ["images/4.png", f"{bucket.url}/d/images/0.png"]}), tmp_path / "paths.parquet")
    bucket.put("d/paths.parquet", tmp_path / "paths.parquet")
    assert [p.data.read() for p in open_dataset(f"{bucket.url}/d/paths.parquet")] == [png(4), png(0)]
    pq.write_table(pa.table({"width": [1]}), tmp_path / "none.parquet")
    with pytest.raises(BadInput, match="has no column of pictures or paths, only: width"):
        open_dataset(tmp_path / "none.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 broken")
    with pytest.raises(BadInput, match="It should be a Parquet file"):
        open_dataset(tmp_path / "broken.parquet")


def test_a_bucket_that_fails_is_no_bad_picture_and_nothing_of_the_shard_counts(bucket, tmp_path, clip, proxy):  # noqa: F811
    for at in range(8):
        bucket.put(f"p/{at}.png", png(at))
    place = open_sharded(tmp_path / "store", clip, f"{bucket.url}/p", size=4, batch=2)
    proxy.fault = lambda method, path, before: (503, "SlowDown") if path.endswith("p/5.png") else None
    with pytest.raises(ObjectStoreError, match="does not serve requests"):
        index(clip, f"{bucket.url}/p", place.place)
    assert committed_shards(place.place) == {0}
    proxy.fault = lambda *_: None
    bucket.delete(["p/5.png"])  # gone between two listings: then it is a bad picture
    walk = ShardWalk(open_dataset(f"{bucket.url}/p"), 4)
    pictures = [*walk.shard(1)]
    assert [p.id for p in pictures] == ["4.png", "6.png", "7.png"]
    with pytest.raises(BadImage, match=r"p/5.png is not there. Put it back"):
        ObjectFile(f"{bucket.url}/p", "5.png").read()
    with pytest.raises(BadImage, match="are allowed"):
        ObjectFile(f"{bucket.url}/p", "4.png", 2**40).read()
    assert index_shard(clip, walk, place, 1).images == 3


def test_a_picture_and_places_as_they_are_typed(bucket, clip):  # noqa: F811
    bucket.put("p/a cat.png", png(1))
    assert is_collection(f"{bucket.url}/p")
    [one] = open_dataset(f"{bucket.url}/p/a cat.png")
    assert one.data.read() == png(1)
    with pytest.raises(BadInput, match=r"there is no object under s3://\S+/none"):
        open_dataset(f"{bucket.url}/none")
    assert expanded("{0..2}-{08..09}.tar")[::5] == ["0-08.tar", "2-09.tar"]
    with pytest.raises(BadInput, match="Type the smaller number first"):
        expanded("{5..3}.tar")
    embeddings, names, _ = embedded_pictures(clip, f"{bucket.url}/p")
    assert (len(embeddings), names) == (1, ("a cat.png",))


def test_a_data_set_of_hugging_face_is_streamed(tmp_path):
    for at, kind in enumerate(("cat", "cat", "dog")):
        (tmp_path / "set" / "train" / kind).mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / "train" / kind / f"{at}.png").write_bytes(png(at))
    source = open_dataset(f"hf-stream:{tmp_path / 'set'}:train")
    assert [(p.id, p.label) for p in source] == [("train/0", "cat"), ("train/1", "cat"), ("train/2", "dog")]
    assert source.count() is None
    assert source.spec == f"hf-stream:{tmp_path / 'set'}:train"
    [third] = [p for p in source if p.id == "train/2"]
    assert read_data(source.fetch("2"), "").tobytes() == read_data(third.data, "").tobytes()
    assert read_data(third.data, "").size == (32, 33)
