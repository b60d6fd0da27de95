"""Readers of data sets with masks or labels, on miniatures in the real formats, on real COCO files, and on broken ones."""

import io
import json
import tempfile
from contextlib import suppress
from pathlib import Path

import minis
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clip_anatomy.data.class_names import (
    CITYSCAPES,
    COCO_STUFF,
    COCO_THINGS,
    CONTEXT_CLASSES,
    POTSDAM,
    VOC_CLASSES,
)
from clip_anatomy.data.masked import MaskedDataset, TaggedDataset, check_sizes, read_ids
from clip_anatomy.data.masked_datasets import READERS, open_masked
from clip_anatomy.data.matlab import matlab_table
from clip_anatomy.data.referring import ReferringDataset
from clip_anatomy.errors import BadImage, BadInput, BadSpec, ClipAnatomyError


def test_every_reader_has_a_miniature() -> None:
    assert set(READERS) == {*minis.MASKED, *minis.LABELLED, *minis.REFERRING}


@pytest.mark.parametrize("name", minis.REFERRING)
def test_phrases_and_regions_come_as_they_were_written(name: str, tmp_path: Path) -> None:
    truth = minis.REFERRING[name](tmp_path)
    data = open_masked(name, tmp_path)
    assert isinstance(data, ReferringDataset)
    assert {entry.id for entry in data.entries} == set(truth)
    assert len({entry.phrase for entry in data.entries}) == (1 if name == "phrasecut" else 2)
    for entry in data.entries:
        image = entry.picture()
        assert (image.mode, (image.height, image.width)) == ("RGB", truth[entry.id].shape)
        np.testing.assert_array_equal(entry.mask(), truth[entry.id])
        if entry.objects is not None:
            assert any((one == truth[entry.id]).all() for one in entry.objects())
            assert len(entry.objects()) == 2


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_references_are_read_whatever_pickle_wrote_them(protocol: int, tmp_path: Path) -> None:
    truth = minis.refcoco(tmp_path, protocol=protocol)
    assert {entry.id for entry in open_masked("refcoco-testA", tmp_path).entries} == set(truth)


def test_references_that_run_something_are_refused(tmp_path: Path) -> None:
    minis.refcoco(tmp_path)
    (tmp_path / "refs(unc).p").write_bytes(b"\x80\x02cos\nsystem\nX\x01\x00\x00\x00x\x85R.")
    with pytest.raises(BadInput, match="asks for os.system.*Nothing of it was run"):
        open_masked("refcoco-val", tmp_path)


def test_references_without_pictures_or_of_another_split_say_what_to_get(tmp_path: Path) -> None:
    minis.refcoco(tmp_path / "refcoco+")
    (tmp_path / "refcoco+" / "train2014").rename(tmp_path / "train2014")
    assert open_masked("refcoco-val", tmp_path / "refcoco+").name == "refcoco+ val (unc)"
    (tmp_path / "train2014").rename(tmp_path / "elsewhere")
    with pytest.raises(BadInput, match="train2014 is not there"):
        open_masked("refcoco-val", tmp_path / "refcoco+")
    with pytest.raises(BadInput, match="umd"):
        open_masked("refcocog-val", tmp_path / "refcoco+")


@pytest.mark.parametrize("name", minis.MASKED)
def test_masks_and_pictures_come_as_they_were_written(name: str, tmp_path: Path) -> None:
    truth = minis.MASKED[name](tmp_path)
    data = open_masked(name, tmp_path)
    assert isinstance(data, MaskedDataset)
    assert [entry.id for entry in data.entries] == sorted(truth)
    for entry in data.entries:
        image, mask = entry.picture(), entry.mask()
        check_sizes(image, mask)
        assert image.mode == "RGB"
        np.testing.assert_array_equal(mask, truth[entry.id])
        assert mask.max() < len(data.classes)


@pytest.mark.parametrize("name", minis.LABELLED)
def test_labels_come_as_they_were_written(name: str, tmp_path: Path) -> None:
    truth = minis.LABELLED[name](tmp_path)
    data = open_masked(name, tmp_path)
    assert isinstance(data, TaggedDataset)
    assert {entry.id: set(entry.labels) for entry in data.entries} == truth
    assert all(entry.picture().mode == "RGB" for entry in data.entries)


@pytest.mark.parametrize("name", READERS)
def test_another_folder_says_what_is_missing_and_where_to_get_it(name: str, tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(BadInput, match=r"(is not|is not there).*Type (the|that|a) (folder|path)") as raised:
            open_masked(name, place)
        assert "http" not in str(raised.value)


def test_unknown_data_set_lists_the_known_ones() -> None:
    with pytest.raises(BadSpec, match="Type one of: imagenet-segmentation, voc21"):
        open_masked("mnist", ".")


def test_coco_from_pixel_maps(tmp_path: Path) -> None:
    things, wholes = minis.coco_maps(tmp_path)
    for name, truth in (("coco-object", things), ("coco-stuff", wholes)):
        data = open_masked(name, tmp_path)
        assert isinstance(data, MaskedDataset)
        assert data.notes == ("masks from stuffthingmaps",)
        for entry in data.entries:
            np.testing.assert_array_equal(entry.mask(), truth[entry.id])


def test_context_with_its_own_list_of_names(tmp_path: Path) -> None:
    minis.context(tmp_path, background=True)
    (tmp_path / "SegmentationClassContext").rename(tmp_path / "59_context_labels")
    with pytest.raises(BadInput, match=r"no 59_labels\.txt"):
        open_masked("context60", tmp_path)
    minis.lines(tmp_path / "59_labels.txt", ["0: empty", *(f"{i}: word{i}" for i in range(1, 60))])
    assert open_masked("context60", tmp_path).classes[:2] == ("background", "word1")
    minis.lines(tmp_path / "59_labels.txt", ["1: alone"])
    with pytest.raises(BadInput, match="names 1 classes, not 59"):
        open_masked("context60", tmp_path)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("background", [True, False])
def test_context_from_its_label_maps_of_459(background: bool, packed: bool, tmp_path: Path) -> None:
    truth = minis.context_mat(tmp_path, background=background, packed=packed)
    data = open_masked("context60" if background else "context59", tmp_path)
    assert isinstance(data, MaskedDataset)
    assert "459 labels to 59 by their names" in data.notes[0]
    for entry in data.entries:
        check_sizes(entry.picture(), entry.mask())
        np.testing.assert_array_equal(entry.mask(), truth[entry.id])
    # All forms ask for the same texts, whatever their order and spelling.
    assert set(data.classes) - {"background"} == set(CONTEXT_CLASSES)


def test_context_lists_that_do_not_fit_and_damaged_label_maps(tmp_path: Path) -> None:
    from scipy.io import savemat

    minis.context_mat(tmp_path, background=True)
    entry = open_masked("context60", tmp_path).entries[0]
    file = tmp_path / "trainval" / f"{entry.id}.mat"
    whole = file.read_bytes()
    for content, says in (
        (whole[:-9], "cannot be read"),
        (whole[:200], "cannot be read"),
        (b"", "no MATLAB 5 file"),
        (b"MATLAB 7.3 MAT-file", "is a MATLAB 7.3 file"),
    ):
        file.write_bytes(content)
        with pytest.raises(BadInput, match=says):
            entry.mask()
    for value, says in (({"Other": np.eye(3)}, "holds no LabelMap"), ({"LabelMap": "text"}, "is no table of numbers")):
        savemat(file, value)
        with pytest.raises(BadInput, match=says):
            entry.mask()
    savemat(file, {"LabelMap": np.full((36, 48), 460, np.uint16)})
    with pytest.raises(BadInput, match="unknown ids: 460"):
        entry.mask()
    (tmp_path / "labels.txt").write_text((tmp_path / "labels.txt").read_text().replace("wood", "stone floor"))
    with pytest.raises(BadInput, match=r"wood of 59_labels\.txt are not in labels\.txt"):
        open_masked("context60", tmp_path)
    (tmp_path / "labels.txt").unlink()
    with pytest.raises(BadInput, match=r"no labels\.txt, which says"):
        open_masked("context60", tmp_path)


@pytest.mark.parametrize("dtype", ["u1", "u2", "i4", "f4", "f8", "i8"])
def test_tables_of_matlab_files_are_what_scipy_wrote(dtype: str, tmp_path: Path) -> None:
    from scipy.io import loadmat, savemat

    file, rng = tmp_path / "a.mat", np.random.default_rng(0)
    for shape in ((1, 1), (1, 7), (5, 1), (31, 40)):
        for high in (3, 120):  # small numbers are stored in smaller types
            for packed in (True, False):
                table = rng.integers(0, high, shape).astype(dtype)
                held = {"before": np.eye(2), "word": "x", "LabelMap": table, "box": {"a": 1}}
                savemat(file, held, do_compression=packed)
                np.testing.assert_array_equal(matlab_table(file, "LabelMap"), table)
                np.testing.assert_array_equal(matlab_table(file, "before"), loadmat(file)["before"])


@given(seed=st.integers(0, 2**32 - 1), packed=st.booleans())
@settings(max_examples=60)
def test_damaged_matlab_files_are_refused_or_read(seed: int, packed: bool) -> None:
    from scipy.io import savemat

    rng, buffer = np.random.default_rng(seed), io.BytesIO()
    savemat(buffer, {"a": np.eye(3), "LabelMap": np.arange(42, dtype=np.uint16).reshape(6, 7)}, do_compression=packed)
    content = bytearray(buffer.getvalue())
    if seed % 2:
        content = content[: rng.integers(0, len(content))]
    for at in rng.integers(0, max(1, len(content)), 3):
        content[at : at + 1] = bytes([rng.integers(0, 256)])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.mat"
        file.write_bytes(content)
        try:
            assert matlab_table(file, "LabelMap").ndim == 2
        except BadInput as error:
            assert "Bring back" in str(error) or "-v7" in str(error)  # noqa: PT017


def test_the_other_form_of_cod10k(tmp_path: Path) -> None:
    truth = minis.cod10k(tmp_path)
    (tmp_path / "Test" / "Image").rename(tmp_path / "Test" / "Imgs")
    (tmp_path / "Test" / "GT_Object").rename(tmp_path / "Test" / "GT")
    data = open_masked("cod10k", tmp_path / "Test")
    assert [entry.id for entry in data.entries] == sorted(truth)
    for file in (tmp_path / "Test" / "GT").iterdir():
        Image.open(file).convert("RGB").save(file)  # some copies hold them in colours
    for entry in data.entries:
        np.testing.assert_array_equal(entry.mask(), truth[entry.id])


def test_class_lists_have_their_published_lengths() -> None:
    lengths = [len(x) for x in (VOC_CLASSES, CONTEXT_CLASSES, CITYSCAPES, POTSDAM, COCO_THINGS, COCO_STUFF)]
    assert lengths == [20, 59, 19, 6, 80, 91]
    assert list(CONTEXT_CLASSES) == sorted(CONTEXT_CLASSES, key=lambda n: {"television": "tvmonitor"}.get(n, n))
    assert min(COCO_STUFF) == 92
    assert max(COCO_STUFF) == 182


def test_names_agree_with_the_real_coco_files(shared: Path) -> None:
    theirs = json.loads((shared / "data" / "coco" / "mask_classes.json").read_text())
    for number, name in theirs.items():
        if int(number) in COCO_THINGS:
            assert COCO_THINGS[int(number)] == name
        elif int(number) in COCO_STUFF:  # "wall-brick" is "brick wall" here
            words = set(name.replace("playingfield", "playing-field").split("-")) - {"stuff", "other"}
            assert {w.removesuffix("d") for w in COCO_STUFF[int(number)].split()} == {
                w.removesuffix("d") for w in words
            }


def test_real_coco_photographs(shared: Path) -> None:
    data = open_masked("sample", shared / "data" / "coco")
    assert isinstance(data, MaskedDataset)
    assert len(data) == 100
    assert "28 pictures without a mask" in data.notes[0]
    for entry in data.entries[::10]:
        mask = entry.mask()
        check_sizes(entry.picture(), mask)
        stored = np.array(Image.open(shared / "data" / "coco" / "masks" / f"{entry.id}.png"))
        assert ((mask == -1) == (stored == 0)).all()


def test_broken_masks_are_named(tmp_path: Path) -> None:
    minis.sample(tmp_path)
    entries = {entry.id: entry for entry in open_masked("sample", tmp_path).entries}
    minis.grey(np.full((36, 48), 9), tmp_path / "masks" / "0.png")
    with pytest.raises(BadInput, match=r"0\.png holds unknown ids: 9"):
        entries["0"].mask()
    (tmp_path / "masks" / "1.png").write_bytes(b"no picture")
    with pytest.raises(BadInput, match=r"1\.png cannot be read"):
        entries["1"].mask()
    Image.new("RGB", (40, 40)).save(tmp_path / "masks" / "2.png")
    with pytest.raises(BadInput, match="3 channels: one number a pixel"):
        entries["2"].mask()
    (tmp_path / "images" / "2.jpg").unlink()
    with pytest.raises(BadImage):
        entries["2"].picture()
    with pytest.raises(BadImage, match=r"mask has 3 × 4 pixels \(row × col\), the picture 5 × 6"):
        check_sizes(Image.new("RGB", (6, 5)), np.zeros((3, 4), np.int32))
    with pytest.raises(BadImage, match="says nothing about any pixel"):
        check_sizes(Image.new("RGB", (4, 3)), np.full((3, 4), -1, np.int32))


def test_sixteen_bit_and_one_bit_masks(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 300]], np.uint16)).save(tmp_path / "a.png")
    assert read_ids(tmp_path / "a.png").tolist() == [[0, 300]]
    Image.fromarray(np.array([[False, True]])).save(tmp_path / "b.png")
    assert read_ids(tmp_path / "b.png").tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("name", "file", "content"),
    [
        ("voc21", "ImageSets/Segmentation/val.txt", ""),
        ("ade20k", "objectInfo150.txt", "3\t0\tx"),
        ("coco-object", "annotations/instances_val2017.json", "[]"),
        ("coco-object", "annotations/instances_val2017.json", '{"images": [], "annotations": []}'),
        ("coco-stuff", "annotations/stuff_val2017.json", "no json"),
        ("nus-wide", "TrainTestLabels/Labels_bear_Test.txt", "1"),
        ("nus-wide", "ImageList/TestImagelist.txt", ""),
        ("sample", "mask_classes.json", '["person"]'),
        ("imagenet-segmentation", "gtsegs_ijcv.mat", "MATLAB 5.0"),
    ],
)
def test_damaged_lists_are_refused(name: str, file: str, content: str, tmp_path: Path) -> None:
    (minis.MASKED | minis.LABELLED)[name](tmp_path)
    (tmp_path / file).write_text(content)
    with pytest.raises(ClipAnatomyError, match=r"Type|Bring back"):
        open_masked(name, tmp_path)


def test_unknown_category_and_colours(tmp_path: Path) -> None:
    minis.coco_object(tmp_path / "coco")
    file = tmp_path / "coco" / "annotations" / "instances_val2017.json"
    file.write_text(file.read_text().replace('"category_id": 90', '"category_id": 12'))
    with pytest.raises(BadInput, match="unknown id: category 12"):
        open_masked("coco-object", tmp_path / "coco").entries[0].mask()
    minis.potsdam(tmp_path / "potsdam")
    label = tmp_path / "potsdam" / "5_Labels_all" / "top_potsdam_2_13_label.tif"
    Image.new("RGB", (512, 530), (1, 2, 3)).save(label)
    with pytest.raises(BadInput, match="pixels of other colours"):
        open_masked("potsdam", tmp_path / "potsdam").entries[0].mask()


def test_an_empty_matlab_file(tmp_path: Path) -> None:
    import h5py

    with h5py.File(tmp_path / "gtsegs_ijcv.mat", "w") as file:
        file.create_group("value")
    with pytest.raises(BadInput, match="no /value/img and /value/gt"):
        open_masked("imagenet-segmentation", tmp_path)


def test_records_of_a_matlab_file_are_what_scipy_reads(tmp_path: Path) -> None:
    scipy = pytest.importorskip("scipy.io")
    from clip_anatomy.data.matlab import matlab_records

    kinds = [("number", "O"), ("name", "O"), ("table", "O")]
    given = np.array([(1, "n01", np.eye(2)), (2.5, "nö", ""), (-3, "日本", [1, 2])], dtype=kinds)
    for packed in (False, True):
        scipy.savemat(tmp_path / "a.mat", {"before": np.eye(2), "x": given}, do_compression=packed)
        read = scipy.loadmat(tmp_path / "a.mat", squeeze_me=True)["x"]
        found = matlab_records(tmp_path / "a.mat", "x")
        assert [(one["number"], one["name"]) for one in found] == [
            (float(one["number"]), str(one["name"])) for one in read
        ]
        assert found[0]["table"] is None
        whole = (tmp_path / "a.mat").read_bytes()
        for at in range(130, len(whole), 3):
            (tmp_path / "b.mat").write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
            with suppress(BadInput):
                matlab_records(tmp_path / "b.mat", "x")
    with pytest.raises(BadInput, match="before is no structure"):
        matlab_records(tmp_path / "a.mat", "before")
