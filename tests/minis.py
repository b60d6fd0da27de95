"""Miniatures of data sets in their real formats, drawn at random, and what every mask holds, known beside the files.

A writer fills a folder and returns {id of an entry: class numbers, −1 where nothing counts}.
"""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clip_anatomy.data.class_names import CITYSCAPES, COCO_STUFF, COCO_THINGS, CONTEXT_CLASSES, POTSDAM

Truth = dict[str, np.ndarray]
SIZES = [(36, 48), (50, 40), (40, 40)]


def blocks(rng: np.random.Generator, size: tuple[int, int], values: list[int]) -> np.ndarray:
    """A mask of rectangles."""
    mask = np.full(size, values[0], np.int64)
    for value in rng.permutation(values)[:6]:
        top, left = rng.integers(0, size[0] - 8), rng.integers(0, size[1] - 8)
        mask[top : top + rng.integers(6, 20), left : left + rng.integers(6, 20)] = value
    return mask


def picture(rng: np.random.Generator, size: tuple[int, int], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    coarse.resize((size[1], size[0]), Image.Resampling.BICUBIC).save(path)


def grey(mask: np.ndarray, path: Path, *, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(mask.astype(np.uint8))
    if palette:
        image.putpalette([i * 7 % 256 for i in range(768)])
    image.save(path)


def lines(path: Path, rows: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")


def shifted(stored: np.ndarray, table: dict[int, int]) -> np.ndarray:
    return np.vectorize(table.__getitem__)(stored)


def voc(root: Path, *, background: bool) -> Truth:
    rng, truth = np.random.default_rng(0), Truth()
    for at, size in enumerate(SIZES):
        name = f"2007_{at:06d}"
        stored = blocks(rng, size, [0, 1, 7, 15, 20, 255])
        picture(rng, size, root / "JPEGImages" / f"{name}.jpg")
        grey(stored, root / "SegmentationClass" / f"{name}.png", palette=True)
        truth[name] = np.where(stored == 255, -1, stored if background else stored - 1)
    lines(root / "ImageSets" / "Segmentation" / "val.txt", list(truth))
    return truth


def context(root: Path, *, background: bool) -> Truth:
    rng, truth = np.random.default_rng(1), Truth()
    for at, size in enumerate(SIZES):
        name = f"2008_{at:06d}"
        stored = blocks(rng, size, [0, 1, 30, 59])
        picture(rng, size, root / "JPEGImages" / f"{name}.jpg")
        grey(stored, root / "SegmentationClassContext" / f"{name}.png")
        truth[name] = stored if background else np.where(stored == 0, -1, stored - 1)
    lines(root / "ImageSets" / "SegmentationContext" / "val.txt", list(truth))
    return truth


def context_every(root: Path) -> Truth:
    """All 459 labels: the 59 in the order of their list, then the others in the order of theirs."""
    from scipy.io import loadmat

    truth = context_mat(root, background=False)
    short = {"diningtable": "table", "bedcloth": "bedclothes", "clothes": "cloth"}
    full, first = ([line.split(": ")[1] for line in (root / name).read_text().splitlines()] for name in ("labels.txt", "59_labels.txt"))  # fmt: skip
    first = [short.get(name, name) for name in first[1:]]
    order = [*first, *(name for name in full if name not in first)]
    for name in truth:
        numbers = loadmat(root / "trainval" / f"{name}.mat")["LabelMap"]
        truth[name] = np.vectorize(lambda n: order.index(full[n - 1]) if n else -1)(numbers)
    return truth


def context_mat(root: Path, *, background: bool, packed: bool = True) -> Truth:
    """The annotation itself: MATLAB files of 459 labels and the two lists that name them, as the data set ships them."""
    from scipy.io import savemat

    rng, truth = np.random.default_rng(13), Truth()
    theirs = {"potted plant": "pottedplant", "television": "tvmonitor"}
    full = [theirs.get(name, name) for name in CONTEXT_CLASSES]
    short = {"table": "diningtable", "bedclothes": "bedcloth", "cloth": "clothes"}
    names = sorted({*full, *(f"thing{i:03d}" for i in range(400))})
    # As shipped, the 59 do not stand in alphabetical order: the twenty objects of VOC come first.
    chosen = [full[at] for at in rng.permutation(59)]
    lines(root / "labels.txt", [f"{i}: {name}" for i, name in enumerate(names, 1)])
    lines(root / "59_labels.txt", ["0: empty", *(f"{i}: {short.get(n, n)}" for i, n in enumerate(chosen, 1))])
    (root / "trainval").mkdir(parents=True, exist_ok=True)
    used = ["aeroplane", "wood", "table", "bedclothes", "cloth"]
    stored = {0: 0, 1 + names.index("thing007"): 0, 255: 0} | {1 + names.index(n): 1 + chosen.index(n) for n in used}
    assert names[254] not in used
    if names[254] in full:
        stored[255] = 1 + chosen.index(names[254])
    for at, size in enumerate(SIZES):
        name = f"2008_{at:06d}"
        numbers = blocks(rng, size, list(stored))
        picture(rng, size, root / "JPEGImages" / f"{name}.jpg")
        savemat(root / "trainval" / f"{name}.mat", {"LabelMap": numbers.astype(np.uint16)}, do_compression=packed)
        found = shifted(numbers, stored)
        truth[name] = found if background else found - 1
    lines(root / "ImageSets" / "Main" / "val.txt", list(truth))
    return truth


def ade(root: Path) -> Truth:
    rng, truth = np.random.default_rng(2), Truth()
    for at, size in enumerate(SIZES):
        name = f"ADE_val_{at + 1:08d}"
        stored = blocks(rng, size, [0, 1, 75, 150])
        picture(rng, size, root / "images" / "validation" / f"{name}.jpg")
        grey(stored, root / "annotations" / "validation" / f"{name}.png")
        truth[name] = stored - 1
    rows = [f"{i}\t0.1\t100\t10\t{i % 2}\tthing{i}, other word" for i in range(1, 151)]
    lines(root / "objectInfo150.txt", ["Idx\tRatio\tTrain\tVal\tStuff\tName", *rows])
    return truth


def cityscapes(root: Path) -> Truth:
    rng, truth = np.random.default_rng(3), Truth()
    order = {number: at for at, number in enumerate(CITYSCAPES)}
    for at, city in enumerate(("ulm", "bonn")):
        name = f"{city}/{city}_{at:06d}_000019"
        stored = blocks(rng, (40, 80), [0, 1, 7, 26, 33])
        picture(rng, (40, 80), root / "leftImg8bit" / "val" / f"{name}_leftImg8bit.png")
        grey(stored, root / "gtFine" / "val" / f"{name}_gtFine_labelIds.png")
        truth[name] = shifted(stored, {n: order.get(n, -1) for n in range(34)})
    return truth


def potsdam(root: Path) -> Truth:
    rng, truth = np.random.default_rng(4), Truth()
    colours = np.array(list(POTSDAM), np.uint8)
    for tile in ("2_13", "2_10"):  # the second belongs to the training split
        mask = blocks(rng, (530, 512), [0, 1, 2, 3, 4, 5])
        mask[100:500, 30:400] = 3
        picture(rng, mask.shape, root / "2_Ortho_RGB" / f"top_potsdam_{tile}_RGB.tif")
        labels = root / "5_Labels_all" / f"top_potsdam_{tile}_label.tif"
        labels.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(colours[mask]).save(labels, compression="tiff_lzw")
        if tile == "2_13":
            truth = {"2_13 at 0, 0": mask[:512], "2_13 at 18, 0": mask[18:]}
    return truth


def cod10k(root: Path) -> Truth:
    rng, truth = np.random.default_rng(5), Truth()
    for at, size in enumerate(SIZES):
        name = f"COD10K-CAM-1-Aquatic-1-BatFish-{at}"
        mask = blocks(rng, size, [0, 1])
        mask[10:20, 10:20] = 1
        picture(rng, size, root / "Test" / "Image" / f"{name}.jpg")
        grey(mask * 255, root / "Test" / "GT_Object" / f"{name}.png")
        truth[name] = mask
    picture(rng, SIZES[0], root / "Test" / "Image" / "COD10K-NonCAM-1-Flying-2-Bird-9.jpg")
    return truth


def imagenet_seg(root: Path) -> Truth:
    """As MATLAB 7.3 writes it: a header of 512 bytes, arrays column by column, cells as object references."""
    import h5py

    rng, truth = np.random.default_rng(6), Truth()
    root.mkdir(parents=True, exist_ok=True)
    path = root / "gtsegs_ijcv.mat"
    with h5py.File(path, "w", userblock_size=512) as file:
        refs = file.create_group("#refs#")
        images, masks = [], []
        for at, size in enumerate(SIZES):
            mask = blocks(rng, size, [0, 1])
            mask[12:24, 8:30] = 1
            coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
            image = np.asarray(coarse.resize((size[1], size[0]), Image.Resampling.BICUBIC))
            images.append(refs.create_dataset(f"img{at}", data=image.transpose(2, 1, 0)).ref)
            inner = refs.create_dataset(f"mask{at}", data=mask.astype(np.uint8).T)
            cell = refs.create_dataset(f"cell{at}", (1, 1), dtype=h5py.ref_dtype)
            cell[0, 0] = inner.ref
            masks.append(cell.ref)
            truth[f"{at:04d}"] = mask
        value = file.create_group("value")
        for name, found in (("img", images), ("gt", masks)):
            stored = value.create_dataset(name, (len(found), 1), dtype=h5py.ref_dtype)
            for at, ref in enumerate(found):
                stored[at, 0] = ref
    with path.open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(116) + b"\0" * 8 + b"\0\2IM")
    return truth


def _coco(root: Path, seed: int, *, stuff: bool) -> tuple[Truth, Truth, dict[str, set[int]]]:
    """Rectangles as polygons, one crowd as a list of runs, stuff as COCO's string of runs."""
    from pycocotools import mask as tool

    rng = np.random.default_rng(seed)
    things, wholes, labels = Truth(), Truth(), {}
    images, instances, textures = [], [], []
    order = {number: at for at, number in enumerate(COCO_THINGS)}
    number = 0
    for at, size in enumerate(SIZES):
        name = f"{at + 1:012d}.jpg"
        picture(rng, size, root / "val2017" / name)
        images.append({"id": at + 1, "file_name": name, "height": size[0], "width": size[1]})
        thing, whole = np.zeros(size, np.int64), np.full(size, -1, np.int64)
        if stuff:
            there = np.zeros(size, bool)
            there[:, : size[1] // 2] = True
            coded = tool.encode(np.asfortranarray(there.astype(np.uint8)))
            for category, other in ((157, False), (183, True)):
                runs = tool.encode(np.asfortranarray((~there if other else there).astype(np.uint8)))
                coded = {"size": list(size), "counts": runs["counts"].decode("ascii")}
                number += 1
                area = float((~there if other else there).sum())
                common = {"id": number, "image_id": at + 1, "iscrowd": 0, "area": area}
                textures.append({**common, "category_id": category, "segmentation": coded})
            whole[there] = len(COCO_THINGS) + list(COCO_STUFF).index(157)
        labels[name] = set()
        for category, (top, left, high, wide) in ((1, (4, 6, 20, 22)), (90, (8, 10, 9, 7)), (18, (25, 2, 6, 30))):
            if at == 2 and category == 18:
                continue
            number += 1
            box = np.zeros(size, bool)
            box[top : top + high, left : left + wide] = True
            corners = [left, top, left + wide, top, left + wide, top + high, left, top + high]
            segmentation: Any = [[float(c) for c in corners]]
            if category == 90:
                runs, last, count = [], False, 0
                for value in box.ravel(order="F"):
                    if value != last:
                        runs.append(count)
                        count, last = 0, value
                    count += 1
                segmentation = {"size": list(size), "counts": [*runs, count]}
            common = {"id": number, "image_id": at + 1, "iscrowd": int(category == 90), "area": float(high * wide)}
            instances.append({**common, "category_id": category, "segmentation": segmentation})
            thing[box], whole[box] = order[category] + 1, order[category]  # larger first, as drawn above
            labels[name].add(order[category])
        # Painted by area: the person first, then the strip, then the toothbrush.
        if at != 2:
            box = np.zeros(size, bool)
            box[8:17, 10:17] = True
            thing[box], whole[box] = order[90] + 1, order[90]
        things[name], wholes[name] = thing, whole
    notes = root / "annotations"
    notes.mkdir(parents=True, exist_ok=True)
    (notes / "instances_val2017.json").write_text(json.dumps({"images": images, "annotations": instances[::-1]}))
    if stuff:
        (notes / "stuff_val2017.json").write_text(json.dumps({"images": images, "annotations": textures}))
    return things, wholes, labels


def coco_object(root: Path) -> Truth:
    return _coco(root, 7, stuff=False)[0]


def coco_stuff(root: Path) -> Truth:
    return _coco(root, 8, stuff=True)[1]


def coco_maps(root: Path) -> tuple[Truth, Truth]:
    """The same data set as pixel maps: category id − 1, 255 unlabelled. Returns the truth of objects, and of stuff."""
    rng, things, wholes = np.random.default_rng(9), Truth(), Truth()
    first = {number: at + 1 for at, number in enumerate(COCO_THINGS)}
    every = {number: at for at, number in enumerate(COCO_THINGS | COCO_STUFF)}
    for at, size in enumerate(SIZES):
        name = f"{at + 1:012d}"
        stored = blocks(rng, size, [0, 17, 89, 156, 255])
        picture(rng, size, root / "val2017" / f"{name}.jpg")
        grey(stored, root / "stuffthingmaps" / "val2017" / f"{name}.png")
        things[name] = shifted(stored, {v: first.get(v + 1, 0) for v in range(256)})
        wholes[name] = shifted(stored, {v: every.get(v + 1, -1) for v in range(256)})
    return things, wholes


def coco_labels(root: Path) -> dict[str, set[int]]:
    return _coco(root, 10, stuff=False)[2]


def nuswide(root: Path) -> dict[str, set[int]]:
    rng = np.random.default_rng(11)
    concepts = ["airport", "animal", "beach", "bear"]
    names = [f"{concepts[at]}\\{at:04d}_12.jpg" for at in range(3)]
    truth = rng.random((3, 4)) < 0.5
    truth[0, 0] = True
    lines(root / "Concepts81.txt", concepts)
    lines(root / "ImageList" / "TestImagelist.txt", names)
    for at, concept in enumerate(concepts):
        rows = [str(int(v)) for v in truth[:, at]]
        lines(root / "TrainTestLabels" / f"Labels_{concept}_Test.txt", rows)
    for name in names:
        picture(rng, SIZES[0], root / "Flickr" / name.replace("\\", "/"))
    return {name.replace("\\", "/"): set(np.flatnonzero(row).tolist()) for name, row in zip(names, truth, strict=True)}


def sample(root: Path) -> Truth:
    rng, truth = np.random.default_rng(12), Truth()
    for at, size in enumerate(SIZES):
        stored = blocks(rng, size, [0, 1, 171, 184])
        picture(rng, size, root / "images" / f"{at}.jpg")
        grey(stored, root / "masks" / f"{at}.png")
        truth[str(at)] = shifted(stored, {0: -1, 1: 0, 171: 1, 184: 2})
    picture(rng, SIZES[0], root / "images" / "without-a-mask.jpg")
    names = {"0": "unlabeled", "1": "person", "171": "wall-brick", "184": "tree-merged"}
    (root / "mask_classes.json").write_text(json.dumps(names))
    return truth


def refcoco(root: Path, *, by: str = "unc", protocol: int = 2) -> Truth:
    """References as a pickle, as the refer project ships them; objects are rectangles, the second of each picture a list of two polygons."""
    rng, truth = np.random.default_rng(14), Truth()
    images, objects, refs = [], [], []
    splits = ("train", "val", "test") if by != "unc" else ("val", "testA", "testB")
    for at, size in enumerate(SIZES):
        name = f"COCO_train2014_{at + 1:012d}.jpg"
        picture(rng, size, root / "train2014" / name)
        images.append({"id": at + 1, "file_name": name, "height": size[0], "width": size[1]})
        for kind, boxes in enumerate([[(4, 6, 20, 22)], [(2, 2, 9, 7), (20, 4, 8, 30)]]):
            mask = np.zeros(size, bool)
            for top, left, high, wide in boxes:
                mask[top : top + high, left : left + wide] = True
            corners = [[x, y, x + w, y, x + w, y + h, x, y + h] for y, x, h, w in boxes]
            number = 10 * (at + 1) + kind
            objects.append(
                {"id": number, "image_id": at + 1, "category_id": 1, "segmentation": corners, "area": float(mask.sum())}
            )
            sentences = [
                {"sent_id": 2 * number + k, "sent": words, "raw": words.upper(), "tokens": words.split()}
                for k, words in enumerate(("the large box", "box on the left"))
            ]
            for split in splits if by == "unc" else ("val", "test"):
                refs.append(
                    {"ref_id": len(refs), "ann_id": number, "image_id": at + 1, "category_id": 1, "split": split, "file_name": name,
                     "sent_ids": [one["sent_id"] for one in sentences], "sentences": sentences}
                )  # fmt: skip
            truth |= {f"{name} {one['sent_id']}": mask for one in sentences}
    (root / f"refs({by}).p").write_bytes(pickle.dumps(refs, protocol=protocol))
    (root / "instances.json").write_text(json.dumps({"images": images, "annotations": objects, "categories": []}))
    return truth


def phrasecut(root: Path) -> Truth:
    rng, truth, tasks = np.random.default_rng(15), Truth(), []
    for at, size in enumerate(SIZES):
        picture(rng, size, root / "images" / f"{at + 1}.jpg")
        mask, polygons = np.zeros(size, bool), []
        for top, left, high, wide in ((4, 6, 20, 12), (25, 2, 6, 30)):
            mask[top : top + high, left : left + wide] = True
            corners = [[left, top], [left + wide, top], [left + wide, top + high], [left, top + high]]
            polygons.append([corners, [[1.0, 1.0], [2.0, 1.0]]])  # two corners cover nothing
        tasks.append(
            {
                "task_id": f"{at + 1}__0",
                "image_id": at + 1,
                "ann_ids": [1, 2],
                "Polygons": polygons,
                "phrase": "grey boxes",
            }
        )
        truth[f"{at + 1}__0"] = mask
    (root / "refer_test.json").write_text(json.dumps(tasks))
    return truth


REFERRING: dict[str, Callable[[Path], Truth]] = {
    **{f"refcoco-{split}": refcoco for split in ("val", "testA", "testB")},
    **{f"refcocog-{split}": lambda root: refcoco(root, by="umd") for split in ("val", "test")},
    "refcocog-google": lambda root: refcoco(root, by="google"),
    "phrasecut": phrasecut,
}
MASKED: dict[str, Callable[[Path], Truth]] = {
    "imagenet-segmentation": imagenet_seg,
    "voc21": lambda root: voc(root, background=True),
    "voc20": lambda root: voc(root, background=False),
    "context60": lambda root: context(root, background=True),
    "context59": lambda root: context(root, background=False),
    "context459": context_every,
    "ade20k": ade,
    "coco-object": coco_object,
    "coco-stuff": coco_stuff,
    "cityscapes": cityscapes,
    "potsdam": potsdam,
    "cod10k": cod10k,
    "sample": sample,
}
LABELLED: dict[str, Callable[[Path], dict[str, set[int]]]] = {"coco-labels": coco_labels, "nus-wide": nuswide}
