"""Collections of every form: stable ids, labels and captions, bad entries, and the threads that decode ahead."""

import json
import tarfile
import threading
import time
from io import BytesIO

import numpy as np
import pytest
import torch
from pictures import SMALL, encoded, picture, png_claiming, written
from PIL import Image

from clip_anatomy.data.open_dataset import open_dataset, picture_of
from clip_anatomy.data.picture import Picture, Source, decode
from clip_anatomy.data.tables import read_table
from clip_anatomy.errors import BadImage, BadInput
from clip_anatomy.images.pixels import read_image
from clip_anatomy.images.prefetch import prefetched


@pytest.fixture
def tree(tmp_path):
    for name in (
        "dog/b.jpg",
        "dog/a.jpg",
        "cat/deep/c.png",
        "top.png",
        ".hidden/x.png",
        "dog/.thumb.jpg",
        "dog/notes.txt",
    ):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("txt"):
            path.write_text("no picture")
        else:
            picture(40 + len(name)).save(path)
    return tmp_path / "photos"


def test_a_folder_is_walked_in_order_and_its_class_folders_are_labels(tree):
    source = open_dataset(tree)
    assert isinstance(source, Source)
    assert [(p.id, p.label) for p in source] == [
        ("top.png", ""),
        ("cat/deep/c.png", "cat"),
        ("dog/a.jpg", "dog"),
        ("dog/b.jpg", "dog"),
    ]
    assert source.count() == 4
    assert [p.id for p in source] == [p.id for p in open_dataset(str(tree))]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.csv", "file_name,label,group,caption,weight\na.jpg,puppy,g1,a young dog,3\ndog/b.jpg,dog,g2,,4\n"),
        ("labels.tsv", "path\tclass\tgroup\ttext\tweight\ndog/a.jpg\tpuppy\tg1\ta young dog\t3\nb.jpg\tdog\tg2\t\t4\n"),
        (
            "labels.jsonl",
            '{"path": "a.jpg", "label": "puppy", "group": "g1", "captions": ["a young dog"], "weight": "3"}\n\n'
            '{"path": "b.jpg", "label": "dog", "group": "g2", "weight": "4"}\n',
        ),
        (
            "labels.json",
            '{"a.jpg": {"label": "puppy", "group": "g1", "caption": "a young dog", "weight": "3"},'
            ' "b.jpg": {"label": "dog", "group": "g2", "weight": "4"}}',
        ),
    ],
)
def test_tables_give_labels_groups_captions_and_whatever_else_they_hold(tree, tmp_path, name, text):
    table = tmp_path / name
    table.write_text(text)
    found = {p.id: p for p in open_dataset(tree, table)}
    a, b, c = found["dog/a.jpg"], found["dog/b.jpg"], found["cat/deep/c.png"]
    assert (a.label, a.group, a.captions, a.meta) == ("puppy", "g1", ("a young dog",), {"weight": "3"})
    assert (b.label, b.group, b.captions, b.meta) == ("dog", "g2", (), {"weight": "4"})
    assert (c.label, c.group) == ("cat", "")  # not in the table: its folder's name stays


def test_a_folder_takes_its_own_metadata_and_coco_captions_are_understood(tree, tmp_path):
    (tree / "metadata.csv").write_text("file,label\ndog/a.jpg,from the table\n")
    assert {p.id: p.label for p in open_dataset(tree)}["dog/a.jpg"] == "from the table"
    coco = {
        "images": [{"id": 7, "file_name": "a.jpg", "height": 3}, {"id": 9, "file_name": "b.jpg"}],
        "annotations": [{"image_id": 7, "caption": "one"}, {"image_id": 7, "caption": "two"}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    table = read_table(tmp_path / "coco.json")
    assert table["a.jpg"].captions == ("one", "two")
    assert table["b.jpg"].captions == ()


def test_real_captions_reach_their_photographs(shared):
    coco = shared / "data" / "coco"
    found = list(open_dataset(coco / "images", coco / "captions.json"))
    assert len(found) >= 100
    assert all(len(p.captions) >= 5 and p.label == "" for p in found)


@pytest.mark.parametrize(
    ("text", "suffix", "says"),
    [
        ("a,b\n1,2\n", ".csv", "no path"),
        ("[1, 2]", ".json", "instead of a path, or of an object"),
        ("{", ".json", "cannot be read"),
        ("3", ".json", "int"),
        ("path,label\nnowhere.jpg,x\n", ".csv", "names a picture of"),
    ],
)
def test_bad_tables_say_what_is_wrong(tree, tmp_path, text, suffix, says):
    table = tmp_path / f"t{suffix}"
    table.write_text(text)
    with pytest.raises(BadInput, match=says):
        list(open_dataset(tree, table))
    with pytest.raises(BadInput, match="no table"):
        open_dataset(tree, tmp_path / "missing.csv")


def test_lists_name_files_beside_them(tree):
    (tree / "list.txt").write_text("# chosen\ndog/b.jpg\n\ncat/deep/c.png\n")
    source = open_dataset(tree / "list.txt")
    assert [p.id for p in source] == ["dog/b.jpg", "cat/deep/c.png"]
    assert read_image(next(iter(source)).data).size == read_image(tree / "dog" / "b.jpg").size
    (tree / "list.csv").write_text("image,y,group\ndog/a.jpg,1,x\n")
    only = list(open_dataset(tree / "list.csv"))
    assert [(p.id, p.label, p.group) for p in only] == [("dog/a.jpg", "1", "x")]
    (tree / "images").mkdir()
    (tree / "dog" / "a.jpg").rename(tree / "images" / "z.jpg")
    (tree / "list.csv").write_text("file\nz.jpg\n")
    assert next(iter(open_dataset(tree / "list.csv"))).data == tree.resolve() / "images" / "z.jpg"


def make_tar(path, samples):
    with tarfile.open(path, "w") as tar:
        for name, data in samples:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, BytesIO(data))
    return path


def samples(first, count):
    found = []
    for at in range(first, first + count):
        note = {"label": f"class {at % 2}", "split": "train", "boxes": [1, 2]}
        found += [(f"{at:05d}.jpg", encoded(picture(30 + at), "JPEG")), (f"{at:05d}.txt", f"picture {at}\n".encode())]
        found += [(f"{at:05d}.json", json.dumps(note).encode())]
    return found


def test_tars_are_streamed_sample_by_sample(tmp_path):
    make_tar(tmp_path / "s-000.tar", samples(0, 3))
    odd = [("x/0.seg.png", encoded(picture(9), "PNG")), ("x/0.jpg", encoded(picture(9), "JPEG")), ("x/0.cls", b"7")]
    make_tar(tmp_path / "s-001.tar", [*odd, ("only.txt", b"no picture")])
    source = open_dataset(tmp_path)
    found = list(source)
    assert [p.id for p in found] == ["s-000/00000", "s-000/00001", "s-000/00002", "s-001/x/0.seg.png", "s-001/x/0.jpg"]
    assert (found[1].label, found[1].captions, found[1].meta) == ("class 1", ("picture 1",), {"split": "train"})
    assert found[3].label == "7"
    assert source.count() is None
    assert [p.id for p in open_dataset(str(tmp_path / "s-*.tar"))] == [p.id for p in found]
    assert [p.id for p in open_dataset(tmp_path / "s-000.tar")] == [p.id for p in found[:3]]
    assert found[2].path is not None
    assert picture_of(source.spec, found[2].path, "it").size == (32, 40)
    with pytest.raises(BadImage, match="cannot be shown"):
        picture_of(source.spec, "s-000.tar#nothing.jpg", "it")


def test_a_truncated_tar_is_reported_and_the_others_are_walked(tmp_path):
    whole = make_tar(tmp_path / "a.tar", samples(0, 6)).read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[: len(whole) // 2 + 100])
    make_tar(tmp_path / "b.tar", samples(6, 2))
    found = list(open_dataset(tmp_path))
    assert [p.id for p in found][-3:] == ["a.tar", "b/00006", "b/00007"]
    with pytest.raises(BadImage, match="not a whole tar"):
        decode(found[-3], SMALL)
    (tmp_path / "a.tar").write_bytes(whole)
    assert [p.id for p in open_dataset(tmp_path)] == [f"{'a' if at < 6 else 'b'}/{at:05d}" for at in range(8)]


def test_a_dataset_saved_by_datasets_is_a_collection(tmp_path):
    datasets = pytest.importorskip(
        "datasets", reason="the extra is not installed: pip install 'clip-anatomy[datasets]'"
    )
    images = [{"bytes": encoded(picture(20 + at), "PNG"), "path": None} for at in range(3)]
    kinds = {
        "picture": datasets.Image(),
        "label": datasets.ClassLabel(names=["red", "blue"]),
        "caption": datasets.Value("string"),
        "size": datasets.Value("int32"),
    }
    rows = datasets.Dataset.from_dict(
        {"picture": images, "label": [1, 0, 1], "caption": ["x", "y", "z"], "size": [1, 2, 3]},
        features=datasets.Features(kinds),
    )
    rows.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": rows, "test": rows.select([1])}).save_to_disk(tmp_path / "two")
    found = list(open_dataset(tmp_path / "one"))
    assert [(p.id, p.label, p.captions, p.meta) for p in found] == [
        ("all/0", "blue", ("x",), {"size": 1}),
        ("all/1", "red", ("y",), {"size": 2}),
        ("all/2", "blue", ("z",), {"size": 3}),
    ]
    assert decode(found[2], SMALL).col == 22
    test = open_dataset(f"hf-dataset:{tmp_path / 'two'}:test")
    assert [p.id for p in test] == ["test/0"]
    assert test.count() == 1
    assert picture_of(test.spec, "0", "it").size[0] == 21
    with pytest.raises(BadInput, match="splits train, test"):
        open_dataset(f"hf-dataset:{tmp_path / 'two'}")
    rows.remove_columns("picture").save_to_disk(tmp_path / "three")
    with pytest.raises(BadInput, match="no image column"):
        open_dataset(tmp_path / "three")


def test_a_world_is_a_collection_whose_ids_do_not_depend_on_its_length():
    few, many = list(open_dataset("world:3:val")), list(open_dataset("world:70:val"))
    assert [p.id for p in few] == [p.id for p in many[:3]]
    assert len({p.id for p in many}) == 70
    assert np.array_equal(few[2].data, many[2].data)
    assert few[2].path is not None
    assert np.array_equal(np.asarray(picture_of("world:3:val", few[2].path, "it")), few[2].data)
    assert {"shape", "colour", "background"} <= set(few[0].meta)
    assert few[0].label == few[0].meta["shape"]
    assert len(few[0].captions) == 3


def test_a_python_list_of_anything(tree):
    array = np.asarray(picture(8, 6))
    source = open_dataset(
        [tree / "top.png", array, array.copy(), picture(8, 6), torch.zeros(3, 4, 4), Picture("centered", array)]
    )
    ids = [p.id for p in source]
    assert ids[0] == (tree / "top.png").as_posix()
    assert ids[1] == ids[2]  # the same pixels: the same image
    assert len(set(ids)) == 5
    assert picture_of(source.spec, str(tree / "top.png"), "it").size == read_image(tree / "top.png").size
    with pytest.raises(BadImage, match="in memory"):
        picture_of(source.spec, None, "it")
    (tree / "top.png").unlink()
    with pytest.raises(BadImage, match="no such file"):
        picture_of(source.spec, str(tree / "top.png"), "it")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("nowhere", "there is no 'nowhere'"),
        ("world:many", "is no world"),
        ("world:3:nosplit", "no split"),
        ("world:3:test:odd", "is no world"),
        ("nowhere-*.tar", "no tar file"),
        ([], "empty list"),
        ([3], "type int"),
        (3, "type int is not known"),
    ],
)
def test_what_is_no_collection_is_refused(source, says):
    with pytest.raises(BadInput, match=says):
        open_dataset(source)


def test_other_files_are_no_collection(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"film")
    with pytest.raises(BadInput, match="no collection"):
        open_dataset(tmp_path / "a.mp4")
    (tmp_path / "b.txt").write_bytes(b"\xfa\x00\x80\xff")
    with pytest.raises(BadInput, match="text file"):
        list(open_dataset(tmp_path / "b.txt"))


def test_decoding_says_what_a_file_is(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    path = written(tmp_path / "a.jpg", encoded(picture(50, 30), "JPEG", exif=exif))
    one, two = decode(Picture("a", path), SMALL), decode(Picture("b", path.read_bytes()), SMALL)
    assert (one.row, one.col) == (50, 30)
    assert one.size == path.stat().st_size
    assert one.digest == two.digest
    assert torch.equal(one.pixels, two.pixels)
    assert torch.equal(one.pixels, SMALL(read_image(path, keep_mode=True)))


@pytest.mark.parametrize(
    ("data", "says"),
    [(b"", "empty"), (b"not a picture", "not a picture"), (png_claiming(20_000, 20_000), "pixels|Decompression")],
)
def test_bad_bytes_are_bad_images_by_name(data, says):
    with pytest.raises(BadImage, match=says) as told:
        decode(Picture("the-name", data), SMALL)
    assert "the-name" in str(told.value)


def test_work_ahead_keeps_order_stays_within_its_window_and_hands_over_errors():
    pulled, waiting = 0, threading.Event()

    def items():
        nonlocal pulled
        for at in range(40):
            pulled += 1
            yield at

    def work(at):
        time.sleep(0.002 * (at % 3))
        if at == 7:
            raise ValueError("seven")
        return at * at

    stream = prefetched(items(), work, workers=3, window=5)
    first = [next(stream) for _ in range(3)]
    waiting.wait(0.2)
    assert pulled <= 3 + 5 + 1
    rest = list(stream)
    everything = first + rest
    assert [item for item, _ in everything] == list(range(40))
    assert [str(r) if isinstance(r, Exception) else r for _, r in everything] == [
        "seven" if at == 7 else at * at for at in range(40)
    ]


def test_work_ahead_stops_with_its_reader_and_passes_on_what_walking_raised():
    threads = torch.get_num_threads()
    before = threading.active_count()
    stream = prefetched(iter(range(10**9)), lambda at: at, workers=2, window=4, gentle=True)
    assert next(stream) == (0, 0)
    stream.close()
    assert threading.active_count() == before
    assert torch.get_num_threads() == threads

    def broken():
        yield 1
        raise BadInput("the disk has gone")

    stream = prefetched(broken(), lambda at: at, workers=1, window=4)
    assert next(stream) == (1, 1)
    with pytest.raises(BadInput, match="the disk has gone"):
        next(stream)
