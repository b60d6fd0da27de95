"""Published data sets in their real formats: labels, groups, splits, counts, and every kind of bad copy."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import miniatures as mini
import numpy as np
import pytest
from PIL import Image
from stores import clip

from clip_anatomy.data import waterbirds as birds
from clip_anatomy.data.cifar import CIFAR10, CIFAR100
from clip_anatomy.data.cub import CUB
from clip_anatomy.data.imagenet import IMAGENET
from clip_anatomy.data.open_dataset import open_dataset, picture_of
from clip_anatomy.data.picture import Source
from clip_anatomy.errors import BadInput
from clip_anatomy.loading.imagenet_texts import imagenet_names, imagenet_synsets, imagenet_templates, unique_names
from clip_anatomy.store.index import index
from clip_anatomy.store.store import Store

__all__ = ["clip"]  # fixture


def rows(source):
    return [(p.id, p.label, p.group, p.meta) for p in source]


# ---- Waterbirds


def test_waterbirds_tells_class_group_and_official_split(tmp_path):
    mini.waterbirds(tmp_path / "w")
    source = open_dataset(f"waterbirds:{tmp_path / 'w'}:partial")
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
    only = open_dataset(f"waterbirds:{tmp_path / 'w'}:test:partial")
    assert [p.id for p in only] == [p.id for p in found[16:]]
    around = mini.waterbirds(tmp_path / "around" / "waterbird_complete95_forest2water2")
    assert open_dataset(f"waterbirds:{around.parent}:partial").count() == 24


def test_a_whole_copy_has_the_published_number_of_images():
    counts = {one.scheme: dict(one.images) for one in (birds.WATERBIRDS, CUB, IMAGENET, CIFAR10, CIFAR100)}
    assert counts == {
        "waterbirds": {"train": 4795, "val": 1199, "test": 5794},
        "cub": {"train": 5994, "test": 5794},
        "imagenet": {"val": 50_000, "train": 1_281_167},
        "cifar10": {"train": 50_000, "test": 10_000},
        "cifar100": {"train": 50_000, "test": 10_000},
    }


def test_a_whole_copy_needs_no_permission_and_a_copy_that_is_not_whole_says_what_to_type(tmp_path, monkeypatch):
    monkeypatch.setattr(birds, "WATERBIRDS", replace(birds.WATERBIRDS, images={"train": 1040, "val": 7, "test": 24}))
    whole, seed = tmp_path / "whole", mini.waterbirds(tmp_path / "w", each=1)
    picture = next(seed.rglob("*.jpg"))
    lines = ["img_id,img_filename,y,split,place,place_filename"]
    (whole / "001.A").mkdir(parents=True)
    for split, count in enumerate((1040, 7, 24)):
        for at in range(count):
            name = f"001.A/{split}_{at}.jpg"
            os.link(picture, whole / name)
            lines.append(f"{len(lines)},{name},{at % 2},{split},{at // 2 % 2},/x.jpg")
    (whole / "metadata.csv").write_text("\n".join(lines))
    assert open_dataset(f"waterbirds:{whole}").count() == 1071
    assert open_dataset(f"waterbirds:{whole}:test").count() == 24
    (whole / "001.A/0_17.jpg").unlink()
    with pytest.raises(BadInput, match="1,039 train images, 1,040 were expected; 1 are listed but not there") as told:
        open_dataset(f"waterbirds:{whole}")
    assert "0_17.jpg" in str(told.value)
    again = str(told.value).rpartition(": ")[2]
    assert again == f"waterbirds:{whole}:partial"
    assert open_dataset(again).count() == 1070
    assert open_dataset(f"waterbirds:{whole}:test").count() == 24  # what is missing is of another split


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
        open_dataset(f"waterbirds:{root}:partial")


@pytest.mark.parametrize("name", ["imagenet", "waterbirds", "cub", "cifar10", "cifar100"])
def test_no_copy_says_where_to_get_one(tmp_path, name):
    with pytest.raises(BadInput, match="is to be had from") as told:
        open_dataset(f"{name}:{tmp_path / 'nowhere'}")
    assert f"Type: {name}:FOLDER[" in str(told.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="is to be had from"):
        open_dataset(f"{name}:{tmp_path / 'empty'}")
    (tmp_path / "archive.tar.gz").write_bytes(b"x")
    with pytest.raises(BadInput, match="is a file. Unpack it"):
        open_dataset(f"{name}:{tmp_path / 'archive.tar.gz'}")


# ---- CUB


def test_cub_tells_species_split_and_attributes(tmp_path):
    root = mini.cub(tmp_path / "CUB_200_2011")
    source = open_dataset(f"cub:{tmp_path}:partial")
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
    assert open_dataset(f"cub:{root}:test:partial").count() == 4
    more = list(open_dataset(f"cub:{root}:attributes:partial"))
    assert more[0].meta == {"split": "train", "bill shape": "hooked seabird", "wing color": "buff"}
    assert more[3].meta["bill shape"] == "dagger"
    assert [p.id for p in more] == [p.id for p in found]
    (root / "attributes.txt").write_text((root / "attributes/attributes.txt").read_text())
    (root / "attributes/attributes.txt").unlink()
    assert rows(open_dataset(f"cub:{root}:attributes:partial")) == rows(more)


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
        open_dataset(f"cub:{root}:partial")
    with pytest.raises(BadInput):
        open_dataset(f"cub:{root}")


def test_a_cub_that_is_not_whole_is_refused(tmp_path):
    with pytest.raises(BadInput, match="4 species, 200 were expected"):
        open_dataset(f"cub:{mini.cub(tmp_path / 'c')}")


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
    source = open_dataset(f"imagenet:{tmp_path}:partial")
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
    assert {p.id: p.label for p in open_dataset(f"imagenet:{tmp_path / 'val'}:partial")} == flat
    (tmp_path / "val").rename(tmp_path / "train")
    assert next(iter(open_dataset(f"imagenet:{tmp_path}:train:partial"))).meta["split"] == "train"
    with pytest.raises(BadInput, match="is the train folder"):
        open_dataset(f"imagenet:{tmp_path / 'train'}:partial")


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
        open_dataset(f"imagenet:{root}:partial")
    lines = [f"{Path(name).stem},{synset} 1 2 3 4 {synset} 5 6 7 8" for name, synset in reversed(truth.items())]
    (root / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *lines]))
    found = list(open_dataset(f"imagenet:{root}:partial"))
    assert {Path(p.path).name: p.meta["synset"] for p in found} == truth
    same = {p.id: (p.label, p.meta) for p in open_dataset(f"imagenet:{tmp_path / 'sorted'}:partial")}
    assert {p.id: (p.label, p.meta) for p in found} == same  # ids and labels do not depend on the layout
    (root / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *lines[1:]]))
    with pytest.raises(BadInput, match="is not in the table of 11 labels"):
        open_dataset(f"imagenet:{root}:partial")
    for header, row in (("a,b", "1,2"), ("ImageId,PredictionString", "ILSVRC2012_val_00000001,"), ("ImageId", "x")):
        (root / "LOC_val_solution.csv").write_text(f"{header}\n{row}\n")
        with pytest.raises(
            BadInput, match=r"solution\.csv, line 2: 'ILSVRC2012_val_00000001,n01751748 …' was expected"
        ):
            open_dataset(f"imagenet:{root}:partial")


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
    found = list(open_dataset(f"imagenet:{root}:partial"))
    assert {Path(p.path).name: p.meta["synset"] for p in found} == truth
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("one\n")
    with pytest.raises(BadInput, match="the ground truth names class one, which"):
        open_dataset(f"imagenet:{root}:partial")
    (kit / "meta.mat").write_bytes(b"no matrix")
    with pytest.raises(BadInput, match="not the development kit"):
        open_dataset(f"imagenet:{root}:partial")


def test_imagenet_that_is_not_whole_or_not_imagenet_is_refused(tmp_path, monkeypatch):
    root = mini.imagenet(tmp_path / "val", SOME)
    with pytest.raises(BadInput, match="8 val images, 50,000 were expected; 4 synset folders of 1,000") as told:
        open_dataset(f"imagenet:{root}")
    assert f"{SOME[0]} has 2" in str(told.value)
    assert str(told.value).endswith(f"imagenet:{root}:val:partial")
    monkeypatch.setattr("clip_anatomy.data.imagenet.imagenet_synsets", lambda: None)
    with pytest.raises(BadInput, match="no table says which classes"):
        open_dataset(f"imagenet:{root}:partial")
    (tmp_path / "LOC_synset_mapping.txt").write_text("\n".join(f"{s} some words" for s in SYNSETS))
    assert [p.meta["class"] for p in open_dataset(f"imagenet:{root}:partial")][::2] == [0, 134, 517, 999]
    mini.imagenet(root, ["n00000001"])
    with pytest.raises(BadInput, match="1 synsets of .* are not among the 1,000 classes .* such as n00000001"):
        open_dataset(f"imagenet:{root}:partial")


def test_a_whole_imagenet_needs_no_table(tmp_path, monkeypatch):
    """1,000 folders: the folders themselves tell which class is which."""
    reader = "clip_anatomy.data.imagenet"
    monkeypatch.setattr(f"{reader}.imagenet_synsets", lambda: None)
    monkeypatch.setattr(f"{reader}.IMAGENET", replace(IMAGENET, images={"val": 2000, "train": 1_281_167}))
    seed = tmp_path / "seed.JPEG"
    mini.bird(0, 0).save(seed)
    for at, synset in enumerate(SYNSETS):
        folder = tmp_path / "val" / synset
        folder.mkdir(parents=True)
        for n in range(2):
            os.link(seed, folder / f"ILSVRC2012_val_{at * 2 + n + 1:08d}.JPEG")
    source = open_dataset(f"imagenet:{tmp_path}")
    assert source.count() == 2000
    assert sum(p.meta["class"] == at // 2 for at, p in enumerate(source)) == 2000


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
    assert [p.label for p in open_dataset(tmp_path / "d")] == ["great dane", "great dane", "pug"]
    (tmp_path / "t.csv").write_text("path,class_name,group,split\nd/pug/c.png,a pug,indoors,test\n")
    assert rows(open_dataset(tmp_path / "t.csv")) == [("d/pug/c.png", "a pug", "indoors", {"split": "test"})]
