"""Published data sets in their real formats: labels, groups, splits, counts, and every kind of bad copy."""

import os
import pickle
import shutil
from pathlib import Path

import miniatures as mini
import numpy as np
import pytest
from PIL import Image
from stores import clip

from clip_anatomy.errors import BadInput
from clip_anatomy.library.index import index
from clip_anatomy.library.sources import waterbirds as birds
from clip_anatomy.library.sources.inert import read_inert
from clip_anatomy.library.sources.opening import open_source, picture_of
from clip_anatomy.library.sources.picture import Source
from clip_anatomy.library.store import Store
from clip_anatomy.model.zero_shot import imagenet_names, imagenet_synsets, imagenet_templates, unique_names

__all__ = ["clip"]  # fixture


def rows(source):
    return [(p.id, p.label, p.group, p.meta) for p in source]


# ---- Waterbirds


def test_waterbirds_tells_class_group_and_official_split(tmp_path):
    mini.waterbirds(tmp_path / "w")
    source = open_source(f"waterbirds:{tmp_path / 'w'}:partial")
    assert isinstance(source, Source)
    found = list(source)
    assert len(found) == source.count() == 24
    assert source.classes == ("landbird", "waterbird")
    assert {p.group for p in found} == set(birds.GROUPS)
    for at, p in enumerate(found):
        y, place, split = at // 4 % 2, at // 2 % 2, at // 8
        assert p.label == ("landbird", "waterbird")[y]
        assert p.group == f"{p.label} on {('land', 'water')[place]}"
        assert p.meta["split"] == ("train", "val", "test")[split]
        assert p.meta["species"] in p.id.replace("_", " ")
        # The picture itself agrees with the table: land is green, water is blue.
        red, green, blue = np.asarray(picture_of(source.spec, p.path, p.id).resize((1, 1))).ravel()
        assert (green > blue) == (place == 0), (red, green, blue)
    only = open_source(f"waterbirds:{tmp_path / 'w'}:test:partial")
    assert [p.id for p in only] == [p.id for p in found[16:]]
    around = mini.waterbirds(tmp_path / "around" / "waterbird_complete95_forest2water2")
    assert open_source(f"waterbirds:{around.parent}:partial").count() == 24


def test_a_whole_copy_needs_no_permission_and_a_copy_that_is_not_whole_says_what_to_type(tmp_path):
    whole, seed = tmp_path / "whole", mini.waterbirds(tmp_path / "w", each=1)
    picture = next(seed.rglob("*.jpg"))
    lines = ["img_id,img_filename,y,split,place,place_filename"]
    (whole / "001.A").mkdir(parents=True)
    for split, count in enumerate((4795, 1199, 5794)):
        for at in range(count):
            name = f"001.A/{split}_{at}.jpg"
            os.link(picture, whole / name)
            lines.append(f"{len(lines)},{name},{at % 2},{split},{at // 2 % 2},/x.jpg")
    (whole / "metadata.csv").write_text("\n".join(lines))
    assert open_source(f"waterbirds:{whole}").count() == 11_788
    assert open_source(f"waterbirds:{whole}:test").count() == 5794
    (whole / "001.A/2_17.jpg").unlink()
    with pytest.raises(BadInput, match="5,793 test images, 5,794 were expected; 1 are listed but not there") as told:
        open_source(f"waterbirds:{whole}")
    assert "2_17.jpg" in str(told.value)
    again = str(told.value).rpartition(": ")[2]
    assert again == f"waterbirds:{whole}:partial"
    assert open_source(again).count() == 11_787
    assert open_source(f"waterbirds:{whole}:train").count() == 4795  # what is missing is of another split


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.replace("img_filename,y,", "img_filename,bird,"), "no column y"),
        (lambda t: t.replace(",0,0,0,/b", ",0,3,0,/b", 1), "line 2: split is '3', one of 0 .train., 1 .val., 2 .test."),
        (lambda t: t.replace(",0,0,0,/b", ",0,0,7,/b", 1), "line 2: place is '7', one of 0 .land., 1 .water."),
        (lambda t: t.replace(",0,0,0,/b", ",,0,0,/b", 1), "line 2: y is ''"),
        (lambda t: t + t.splitlines()[-1] + "\n", "there twice"),
        (lambda t: t.replace(".jpg,", ".jpeg,"), "holds no train or val or test images"),
        (lambda t: "\x00\x00", "no column|not a readable table"),
    ],
)
def test_bad_tables_of_waterbirds_are_named(tmp_path, change, says):
    root = mini.waterbirds(tmp_path / "w")
    table = root / "metadata.csv"
    table.write_text(change(table.read_text()))
    with pytest.raises(BadInput, match=says):
        open_source(f"waterbirds:{root}:partial")


@pytest.mark.parametrize("name", ["imagenet", "waterbirds", "cub", "cifar10", "cifar100"])
def test_no_copy_says_where_to_get_one(tmp_path, name):
    with pytest.raises(BadInput, match="is to be had from") as told:
        open_source(f"{name}:{tmp_path / 'nowhere'}")
    assert f"Type: {name}:FOLDER[" in str(told.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="is to be had from"):
        open_source(f"{name}:{tmp_path / 'empty'}")
    (tmp_path / "archive.tar.gz").write_bytes(b"x")
    with pytest.raises(BadInput, match="is a file. Unpack it"):
        open_source(f"{name}:{tmp_path / 'archive.tar.gz'}")


# ---- CUB


def test_cub_tells_species_split_and_attributes(tmp_path):
    root = mini.cub(tmp_path / "CUB_200_2011")
    source = open_source(f"cub:{tmp_path}:partial")
    found = list(source)
    assert [p.label for p in found[::3]] == [
        "Black footed Albatross",
        "Laysan Albatross",
        "Cardinal",
        "Northern Flicker",
    ]
    assert source.classes == tuple(p.label for p in found[::3])
    assert [p.meta["split"] for p in found] == ["train", "train", "test"] * 4
    assert found[0].meta == {"split": "train"}
    assert picture_of(source.spec, found[0].path, "it").size == (48, 48)
    assert open_source(f"cub:{root}:test:partial").count() == 4
    more = list(open_source(f"cub:{root}:attributes:partial"))
    assert more[0].meta == {"split": "train", "bill shape": "hooked seabird", "wing color": "buff"}
    assert more[3].meta["bill shape"] == "dagger"
    assert [p.id for p in more] == [p.id for p in found]
    (root / "attributes.txt").write_text((root / "attributes/attributes.txt").read_text())
    (root / "attributes/attributes.txt").unlink()
    assert rows(open_source(f"cub:{root}:attributes:partial")) == rows(more)


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("images.txt", lambda t: t + "99 x/y.jpg\n", "image 99 .x/y.jpg. of images.txt is not in image_class_labels"),
        ("image_class_labels.txt", lambda t: t.replace("1 1\n", "1 77\n", 1), "class 77, which classes.txt lacks"),
        ("train_test_split.txt", lambda t: t.replace("1 1\n", "1 2\n", 1), "0 .test. or 1 .train. was expected"),
        ("classes.txt", lambda t: "1\n", "line 1: '1', 2 words"),
        ("classes.txt", lambda t: None, "has no classes.txt"),
    ],
)
def test_bad_tables_of_cub_are_named(tmp_path, name, change, says):
    root = mini.cub(tmp_path / "c")
    text = change((root / name).read_text())
    (root / name).unlink()
    if text is not None:
        (root / name).write_text(text)
    with pytest.raises(BadInput, match=says):
        open_source(f"cub:{root}:partial")
    with pytest.raises(BadInput):
        open_source(f"cub:{root}")


def test_a_cub_that_is_not_whole_is_refused(tmp_path):
    with pytest.raises(BadInput, match="4 species, 200 were expected"):
        open_source(f"cub:{mini.cub(tmp_path / 'c')}")


# ---- ImageNet

SYNSETS = imagenet_synsets() or ()
SOME = [SYNSETS[at] for at in (0, 134, 517, 999)]


def test_names_templates_and_synsets_are_in_one_order():
    """open_clip's names follow the sorted synsets: timm's WordNet lemmas of the same places agree with them."""
    import timm.data

    info = timm.data.ImageNetInfo("imagenet-1k")
    names = imagenet_names()
    assert len(names) == len(SYNSETS) == 1000
    assert len(imagenet_templates()) == 80
    assert all(t.count("{}") == 1 for t in imagenet_templates())

    def words(text):
        return set(text.lower().replace(",", " ").replace("-", " ").split())

    def agreement(shift):
        lemmas = [words(info.index_to_description((at + shift) % 1000)) for at in range(1000)]
        return sum(bool(words(name) & lemma) for name, lemma in zip(names, lemmas, strict=True)) / 1000

    assert agreement(0) > 0.9  # the others were renamed by CLIP's authors
    assert max(agreement(shift) for shift in (-2, -1, 1, 2)) < 0.2
    assert len(set(unique_names(names, SYNSETS))) == 1000


def test_imagenet_labels_come_from_folders_never_from_the_order_of_files(tmp_path):
    mini.imagenet(tmp_path / "val", SOME, each=3)
    source = open_source(f"imagenet:{tmp_path}:partial")
    found = list(source)
    names = imagenet_names()
    assert [p.label for p in found[::3]] == [names[at] for at in (0, 134, 517, 999)]
    assert [p.meta["class"] for p in found[::3]] == [0, 134, 517, 999]
    assert all(f"/{p.meta['synset']}/" in p.path for p in found)
    assert source.count() == 12
    assert source.classes[134] == names[134]
    assert len(source.classes) == 1000
    numbers = [int(p.id[-13:-5]) for p in found]
    assert numbers != sorted(numbers)  # so a label by the order of files would be wrong
    assert picture_of(source.spec, found[0].path, "it").size == (48, 48)
    flat = {p.id: p.label for p in found}
    assert {p.id: p.label for p in open_source(f"imagenet:{tmp_path / 'val'}:partial")} == flat
    (tmp_path / "val").rename(tmp_path / "train")
    assert next(iter(open_source(f"imagenet:{tmp_path}:train:partial"))).meta["split"] == "train"
    with pytest.raises(BadInput, match="is the train folder"):
        open_source(f"imagenet:{tmp_path / 'train'}:partial")


def flattened(tmp_path, each=3):
    """The validation images in one folder, and what each is."""
    mini.imagenet(tmp_path / "sorted", SOME, each=each)
    truth = {p.name: p.parent.name for p in sorted((tmp_path / "sorted").rglob("*.JPEG"))}
    (tmp_path / "flat" / "val").mkdir(parents=True)
    for path in (tmp_path / "sorted").rglob("*.JPEG"):
        shutil.copy(path, tmp_path / "flat" / "val" / path.name)
    return tmp_path / "flat", truth


def test_flat_imagenet_is_read_with_kaggles_solution(tmp_path):
    root, truth = flattened(tmp_path)
    with pytest.raises(BadInput, match="says nothing about their classes. Put LOC_val_solution.csv"):
        open_source(f"imagenet:{root}:partial")
    lines = [f"{Path(name).stem},{synset} 1 2 3 4 {synset} 5 6 7 8" for name, synset in reversed(truth.items())]
    (root / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *lines]))
    found = list(open_source(f"imagenet:{root}:partial"))
    assert {Path(p.path).name: p.meta["synset"] for p in found} == truth
    same = {p.id: (p.label, p.meta) for p in open_source(f"imagenet:{tmp_path / 'sorted'}:partial")}
    assert {p.id: (p.label, p.meta) for p in found} == same  # ids and labels do not depend on the layout
    (root / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *lines[1:]]))
    with pytest.raises(BadInput, match="is not in the table of 11 labels"):
        open_source(f"imagenet:{root}:partial")


def test_flat_imagenet_is_read_with_the_development_kit(tmp_path):
    scipy = pytest.importorskip("scipy.io")
    root, truth = flattened(tmp_path)
    kit = tmp_path / "ILSVRC2012_devkit_t12" / "data"
    kit.mkdir(parents=True)
    # The kit numbers classes in an order of its own, and knows inner nodes, which are no classes.
    code = {synset: number for number, synset in enumerate([SOME[2], SOME[0], SOME[3], SOME[1]], 1)}
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    known = [(n, s, "x", 0) for s, n in code.items()] + [(1001, "n00000001", "entity", 2)]
    scipy.savemat(kit / "meta.mat", {"synsets": np.array(known, dtype=kinds)})
    by_number = {int(name[15:23]): synset for name, synset in truth.items()}
    ids = [str(code[by_number[n]]) for n in sorted(by_number)]
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("\n".join(ids) + "\n")
    found = list(open_source(f"imagenet:{root}:partial"))
    assert {Path(p.path).name: p.meta["synset"] for p in found} == truth
    (kit / "meta.mat").write_bytes(b"no matrix")
    with pytest.raises(BadInput, match="not the development kit"):
        open_source(f"imagenet:{root}:partial")


def test_imagenet_that_is_not_whole_or_not_imagenet_is_refused(tmp_path, monkeypatch):
    root = mini.imagenet(tmp_path / "val", SOME)
    with pytest.raises(BadInput, match="8 val images, 50,000 were expected; 4 synset folders of 1,000") as told:
        open_source(f"imagenet:{root}")
    assert f"{SOME[0]} has 2" in str(told.value)
    assert str(told.value).endswith(f"imagenet:{root}:val:partial")
    monkeypatch.setattr("clip_anatomy.library.sources.imagenet.imagenet_synsets", lambda: None)
    with pytest.raises(BadInput, match="no table says which classes"):
        open_source(f"imagenet:{root}:partial")
    (tmp_path / "LOC_synset_mapping.txt").write_text("\n".join(f"{s} some words" for s in SYNSETS))
    assert [p.meta["class"] for p in open_source(f"imagenet:{root}:partial")][::2] == [0, 134, 517, 999]
    mini.imagenet(root, ["n00000001"])
    with pytest.raises(BadInput, match="1 synsets of .* are not among the 1,000 classes .* such as n00000001"):
        open_source(f"imagenet:{root}:partial")


def test_a_whole_imagenet_needs_no_table(tmp_path, monkeypatch):
    """1,000 folders of 50 files: the folders themselves tell which class is which."""
    monkeypatch.setattr("clip_anatomy.library.sources.imagenet.imagenet_synsets", lambda: None)
    seed = tmp_path / "seed.JPEG"
    mini.bird(0, 0).save(seed)
    for at, synset in enumerate(SYNSETS):
        folder = tmp_path / "val" / synset
        folder.mkdir(parents=True)
        for n in range(50):
            os.link(seed, folder / f"ILSVRC2012_val_{at * 50 + n + 1:08d}.JPEG")
    source = open_source(f"imagenet:{tmp_path}")
    assert source.count() == 50_000
    assert sum(p.meta["class"] == at // 50 for at, p in enumerate(source)) == 50_000


# ---- CIFAR


@pytest.mark.parametrize("python", [2, 3, 5])
def test_cifar10_of_both_versions_is_the_same(tmp_path, python):
    one = open_source(f"cifar10:{mini.cifar10(tmp_path / 'cifar-10-batches-py', python=python)}:partial")
    two = open_source(f"cifar10:{mini.cifar10_binary(tmp_path / 'b' / 'cifar-10-batches-bin').parent}:partial")
    a, b = list(one), list(two)
    assert one.count() == two.count() == len(a) == len(b) == 18
    assert [(p.id, p.label, p.path, p.meta["split"]) for p in a] == [
        (p.id, p.label, p.path, p.meta["split"]) for p in b
    ]
    assert [p.meta["split"] for p in a] == ["train"] * 15 + ["test"] * 3
    for at, (p, q) in enumerate(zip(a, b, strict=True)):
        flat = mini.cifar_images(3, at // 3)[at % 3]
        assert np.array_equal(p.data, q.data)
        assert p.data[5, 7].tolist() == [flat[5 * 32 + 7], flat[1024 + 5 * 32 + 7], flat[2048 + 5 * 32 + 7]]
        assert p.label == mini.CIFAR10[(at // 3 + at % 3) % 10]
        assert p.meta["filename"].startswith(p.label)
        assert np.array_equal(np.asarray(picture_of(one.spec, p.path, p.id)), p.data)
    assert open_source(f"cifar10:{tmp_path}:test:partial").count() == 3


def test_cifar100_has_classes_and_superclasses(tmp_path):
    a = list(open_source(f"cifar100:{mini.cifar100(tmp_path / 'p')}:partial"))
    b = list(open_source(f"cifar100:{mini.cifar100_binary(tmp_path / 'b')}:partial"))
    assert [(p.label, p.group) for p in a] == [(p.label, p.group) for p in b]
    assert (a[1].label, a[1].group) == ("fine 7", "coarse 1")
    assert all(np.array_equal(p.data, q.data) for p, q in zip(a, b, strict=True))


def test_whole_binary_files_are_counted_by_their_size(tmp_path):
    root = mini.cifar10_binary(tmp_path / "b")
    for name in mini.cifar10_files():
        with (root / f"{name}.bin").open("wb") as file:
            file.truncate(10_000 * 3073)  # takes no room on the disk
    assert open_source(f"cifar10:{root}").count() == 60_000
    (root / "data_batch_4.bin").unlink()
    with pytest.raises(BadInput, match="40,000 train images, 50,000 were expected; missing: data_batch_4.bin"):
        open_source(f"cifar10:{root}")
    (root / "data_batch_3.bin").write_bytes(b"12345")
    with pytest.raises(BadInput, match="5 bytes, a multiple of 3,073"):
        open_source(f"cifar10:{root}:partial")


def test_bad_copies_of_cifar_are_named(tmp_path):
    root = mini.cifar10(tmp_path / "p")
    with pytest.raises(BadInput, match="15 train images, 50,000 were expected; 3 test images, 10,000"):
        open_source(f"cifar10:{root}")
    with pytest.raises(BadInput, match=r"no copy of CIFAR-100.*type: cifar10:"):
        open_source(f"cifar100:{root}")
    whole = (root / "data_batch_2").read_bytes()
    (root / "data_batch_2").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match=r"data_batch_2 is damaged or no pickle"):
        open_source(f"cifar10:{root}:partial")
    (root / "data_batch_2").write_bytes(mini.python2_pickle({"data": mini.cifar_images(2), "labels": [1]}))
    with pytest.raises(BadInput, match="another number of labels"):
        open_source(f"cifar10:{root}:partial")
    (root / "data_batch_2").write_bytes(mini.python2_pickle({"data": mini.cifar_images(2), "labels": [1, 10]}))
    with pytest.raises(BadInput, match="labels 1 to 10 for 10 class names"):
        open_source(f"cifar10:{root}:partial")
    (root / "data_batch_2").write_bytes(mini.python2_pickle({"data": mini.cifar_images(2)}))
    with pytest.raises(BadInput, match="no batch of CIFAR"):
        open_source(f"cifar10:{root}:partial")


# ---- the reader that runs nothing


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (Path(self.mark),))


class Built:
    def __setstate__(self, state):
        raise AssertionError("run")

    def __getstate__(self):
        return {"x": 1}


def malicious(mark):
    """Pickles that do something when they are read, by every way a pickle has."""
    call = b"cos\nsystem\n(S'touch " + mark.encode() + b"'\ntR."
    return {
        "reduce": pickle.dumps({"data": Evil(mark)}, protocol=2),
        "reduce, protocol 4": pickle.dumps({"data": Evil(mark)}, protocol=4),
        "protocol 0": call,
        "inst": b"(S'touch " + mark.encode() + b"'\nios\nsystem\n.",
        "obj": b"(cos\nsystem\nS'touch " + mark.encode() + b"'\no.",
        "newobj": b"\x80\x02cos\nsystem\nS'touch " + mark.encode() + b"'\n\x85\x81.",
        "extension": b"\x80\x02\x82\x01.",
        "persistent": b"Ptouch\n.",
        "build": pickle.dumps({"data": Built()}, protocol=2),
        "eval": b"c__builtin__\neval\n(S'1'\ntR.",
        "a name that looks like numpy's": b"cnumpy.core.multiarray\n_reconstruct.__globals__\n.",
        "numpy's own loader": b"cnumpy\nload\n(S'x'\ntR.",
        "a function of numpy.core": b"cnumpy.core.multiarray\nscalar\n(S'x'\ntR.",
        "hidden by a good array": mini.python2_pickle({"data": mini.cifar_images(1)})[:-1] + b"0" + call,
        "encode with another codec": b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00xX\x03\x00\x00\x00zip\x86R.",
        "a dtype of objects": b"\x80\x02cnumpy\ndtype\nU\x01O\x85R.",
    }


@pytest.mark.parametrize("kind", list(malicious("x")))
def test_nothing_in_a_pickle_is_run(tmp_path, kind):
    mark = tmp_path / "was-run"
    root = mini.cifar10(tmp_path / "p")
    (root / "test_batch").write_bytes(malicious(str(mark))[kind])
    with pytest.raises(BadInput, match="Nothing of it was run|damaged or no pickle"):
        read_inert(root / "test_batch")
    with pytest.raises(BadInput):
        open_source(f"cifar10:{root}:partial")
    assert not mark.exists()


@pytest.mark.parametrize(
    "kind", ["reduce", "reduce, protocol 4", "protocol 0", "inst", "obj", "hidden by a good array"]
)
def test_these_files_do_harm_when_pickle_reads_them(tmp_path, kind):
    mark = tmp_path / "was-run"
    pickle.loads(malicious(str(mark))[kind], encoding="latin-1")
    assert mark.exists()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_are_read_as_pickle_reads_them(tmp_path, protocol):
    value = {
        "text": "naïve",
        "bytes": b"\x00\xff",
        "list": [1, -2, 3000, 2**40, 1.5, None, True, False],
        "nested": {"a": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)]},
        "array": np.arange(12, dtype=np.int32).reshape(3, 4),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    }
    (tmp_path / "v").write_bytes(pickle.dumps(value, protocol=protocol))
    found = read_inert(tmp_path / "v")
    for name in ("text", "bytes", "list", "nested"):
        assert found[name] == value[name]
    for name in ("array", "fortran"):
        assert np.array_equal(found[name], value[name])
        assert found[name].dtype == value[name].dtype


@pytest.mark.parametrize(
    "data",
    [
        b"", b"no pickle", b"\x80\x02.", b"\x80\x02]a.", b"\x80\x02h\x05.", b"\x80\x02Ne.", b"\x80\x02}Ns.", b"\x80\x02t.",
        b"\x80\x02(e.", b"\x80\x02K\x01.", b"\x80\x02}}K\x01s.", b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fx.", b"\x80\x02q\x00.",
    ],
)  # fmt: skip
def test_broken_pickles_are_refused_by_name(tmp_path, data):
    (tmp_path / "v").write_bytes(data)
    with pytest.raises(BadInput, match="/v is"):
        read_inert(tmp_path / "v")


# ---- into a store; folders and tables


def test_labels_groups_and_splits_reach_the_store_and_two_bird_sets_do_not_mix(clip, tmp_path):
    mini.waterbirds(tmp_path / "w", each=1)
    mini.cub(tmp_path / "c", each=2)
    mini.cifar10_binary(tmp_path / "b", count=1)
    for spec in (f"waterbirds:{tmp_path / 'w'}", f"cub:{tmp_path / 'c'}", f"cifar10:{tmp_path / 'b'}:test"):
        index(clip, f"{spec}:partial", tmp_path / "s")
    store = Store.open(tmp_path / "s")
    assert len(store) == 12 + 8 + 1
    wild = store.rows("id like 'waterbirds/%'")
    assert {row.group for row in wild} == set(birds.GROUPS)
    assert sorted({str(s) for s in store.column("split")}) == ["test", "train", "val"]
    for row in store.rows():
        assert isinstance(picture_of(row.source, row.path, row.id), Image.Image)
    again = index(clip, f"waterbirds:{tmp_path / 'w'}:partial", tmp_path / "s")
    assert (again.done, again.known) == (0, 12)


def test_class_folders_and_tables_give_class_names(tmp_path):
    for name in ("great dane/a.png", "great dane/b.png", "pug/c.png"):
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        mini.bird(0, 1).save(tmp_path / "d" / name)
    assert [p.label for p in open_source(tmp_path / "d")] == ["great dane", "great dane", "pug"]
    (tmp_path / "t.csv").write_text("path,class_name,group,split\nd/pug/c.png,a pug,indoors,test\n")
    assert rows(open_source(tmp_path / "t.csv")) == [("d/pug/c.png", "a pug", "indoors", {"split": "test"})]
