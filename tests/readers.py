"""Every reader of something from outside: a whole example of what it reads, and how it is called. `test_fuzz` damages the examples."""

import json
import pickle
import shutil
import tarfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch
from example_files import film, pictures_and_masks, slide, written
from pictures import encoded, noise
from tiny import open_clip_model, transformers_model

import clip_anatomy as ca
from clip_anatomy.data.coco import open_coco_object
from clip_anatomy.data.imagenet_segmentation import open_imagenet_seg
from clip_anatomy.data.mask_folder import open_sample
from clip_anatomy.data.masked import read_ids
from clip_anatomy.data.matlab import matlab_records, matlab_table
from clip_anatomy.data.open_dataset import open_dataset
from clip_anatomy.data.pickle_reader import read_safe_pickle
from clip_anatomy.data.referring import open_phrasecut, open_refcoco
from clip_anatomy.data.tables import read_table
from clip_anatomy.data.tile_source import open_slide
from clip_anatomy.data.video_file import Video
from clip_anatomy.files import write_safetensors
from clip_anatomy.images.decode import read_image
from clip_anatomy.loading.checkpoint import read_state
from clip_anatomy.loading.disk_cache import DiskCache
from clip_anatomy.loading.typed_texts import read_texts
from clip_anatomy.maps import regions
from clip_anatomy.maps.tiled_maps import _tile
from clip_anatomy.naming.language_model import _answer_of, _RetryableError
from clip_anatomy.naming.pool import read_pool
from clip_anatomy.report.ablation_figure import check_folder
from clip_anatomy.store.manifest import Manifest
from clip_anatomy.store.store import Store
from clip_anatomy.store.verify import verify
from clip_anatomy.studies.align import _given
from clip_anatomy.studio.jobs import Jobs

DEMO = Path(ca.__file__).parent / "loading" / "demo"


@dataclass(frozen=True)
class Reader:
    """One reader.

    Attributes:
        example: makes a whole file of what it reads.
        read: reads a file; only errors of the project may come out.
        name: of the file.
    """

    example: Callable[[], bytes]
    read: Callable[[Path], Any]
    name: str = "file"


def read_store(rows: Path) -> None:
    """Read a store with these rows."""
    folder = Path(mkdtemp(dir=rows.parent)) / "store"
    shutil.copytree(store(), folder)
    shutil.copy(rows, folder / "rows.sqlite")
    try:
        verify(folder)
        opened = Store.open(folder)
        opened.rows()
        opened.moments()
    finally:
        shutil.rmtree(folder.parent)


def read_model(config: Path) -> None:
    """Open the demo model under this config."""
    folder = Path(mkdtemp(dir=config.parent))
    try:
        (folder / "open_clip_model.safetensors").symlink_to(DEMO / "open_clip_model.safetensors")
        shutil.copy(config, folder / "open_clip_config.json")
        ca.load(folder, parity=False)
    finally:
        shutil.rmtree(folder)


@cache
def saved_model() -> Path:
    """Return a folder that transformers saved, with the processor of its pictures."""
    from transformers import CLIPImageProcessor

    folder = Path(mkdtemp()) / "model"
    transformers_model().save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def read_saved_model(config: Path) -> None:
    """Open the folder that transformers saved, with this file of it damaged."""
    folder = Path(mkdtemp(dir=config.parent))
    try:
        for file in saved_model().iterdir():
            (folder / file.name).symlink_to(file)
        (folder / config.name).unlink()
        shutil.copy(config, folder / config.name)
        ca.load(folder, parity=False)
    finally:
        shutil.rmtree(folder)


def of_saved(name: str) -> bytes:
    """Return a file of the folder that transformers saved."""
    return (saved_model() / name).read_bytes()


def read_jobs(record: Path) -> None:
    """Take up the jobs that a server of before left, and start another."""
    queue = Jobs({"name heads": lambda _: {}}, record.parent)
    queue.start("name heads")
    queue.close()


def recordings() -> bytes:
    values = {"recordings": np.random.default_rng(0).normal(size=(8, 2)), "channels": np.array(["a", "b"])}
    return written(lambda path: np.savez(path, **values), "r.npz")


def read_masks(annotations: Path) -> None:
    """Read all masks of COCO's JSON file."""
    folder = Path(mkdtemp(dir=annotations.parent))
    try:
        (folder / "val2017").mkdir()
        (folder / "annotations").mkdir()
        shutil.copy(annotations, folder / "annotations" / "instances_val2017.json")
        for entry in open_coco_object(folder).entries[:3]:
            try:
                entry.mask()
            except ca.errors.ClipAnatomyError:
                continue
    finally:
        shutil.rmtree(folder)


def read_answer(file: Path) -> None:
    """Read an answer of a language model."""
    with suppress(_RetryableError):
        _answer_of(file.read_bytes().decode("utf-8", "replace"), cached=False)


def read_cache(file: Path) -> None:
    """Read a cache, and write into it."""
    DiskCache(file).get(["a", "b"])
    DiskCache(file).put({"a": b"1"})


@cache
def store() -> Path:
    """Return a small store."""
    torch.set_num_threads(1)
    place = Path(mkdtemp()) / "store"
    ca.index(ca.load(open_clip_model(layers=1, heads=1, d=8), parity=False), "world:6", place)
    return place


def of_store(name: str) -> bytes:
    """Return a file of a small store."""
    return (store() / name).read_bytes()


def tar() -> bytes:
    file = BytesIO()
    with tarfile.open(fileobj=file, mode="w") as made:
        for name, content in (("a.png", encoded(noise(20, 20), "PNG")), ("a.json", b'{"label": "x"}'), ("b.png", b"x")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            made.addfile(member, BytesIO(content))
    return file.getvalue()


def text(value: Any) -> Callable[[], bytes]:
    return lambda: json.dumps(value).encode()


def edit() -> bytes:
    clip = ca.load("demo", parity=False)
    return written(lambda path: ca.Edit.of(clip, "7.0", by="zero").save(path), "e.json")


@cache
def rerun() -> Path:
    """Return an edit that is felt by later blocks: its means lie beside it."""
    clip = ca.load(open_clip_model(layers=2, heads=1, d=8), parity=False)
    means = ca.Means.of(clip, torch.zeros(2, 3, *clip.preprocess.size))
    return ca.Edit.of(clip, "0.0+mlp=1", means, effect="rerun").save(Path(mkdtemp()) / "e.json")


def read_rerun(file: Path) -> None:
    """Read it, damaged, beside its means."""
    for means in rerun().parent.glob("*.safetensors"):
        shutil.copy(means, file.parent)
    ca.Edit.load(file)


def atlas() -> bytes:
    clip, place = ca.load("demo", parity=False), Path(mkdtemp()) / "store"
    ca.index(clip, "world:12", place)
    return json.dumps(ca.atlas(Store.open(place), clip, texts=1, resamples=0, images=1).to_dict()).encode()


def names_of_masks(file: Path) -> None:
    """Read the names beside one picture and its mask."""
    for folder in ("images", "masks"):
        (file.parent / folder).mkdir(exist_ok=True)
        (file.parent / folder / "a.png").write_bytes(encoded(noise(4, 4).convert("L"), "PNG"))
    open_sample(file.parent)


def references() -> bytes:
    sentences = [{"sent_id": 3, "sent": "a cat", "tokens": ["a", "cat"]}]
    refs = [{"ann_id": at + 1, "image_id": at, "split": "val", "sentences": sentences} for at in range(2)]
    return pickle.dumps(refs, protocol=2)


def read_references(file: Path) -> None:
    """Read references beside good instances, and draw every region."""
    (file.parent / "train2014").mkdir(exist_ok=True)
    (file.parent / "instances.json").write_text(json.dumps(COCO))
    for entry in open_refcoco(file.parent, split="val").entries:
        entry.mask()


def read_phrases(file: Path) -> None:
    (file.parent / "images").mkdir(exist_ok=True)
    (file.parent / "images" / "1.jpg").write_bytes(encoded(noise(8, 8), "JPEG"))
    for entry in open_phrasecut(file.parent).entries:
        entry.mask()


def read_film(file: Path) -> None:
    """Walk the frames; a film that claims millions of them is left after a few."""
    for _, _ in zip(range(8), Video.of(file), strict=False):
        pass


def read_pixels(file: Path) -> None:
    """Read a corner of a large picture, as maps over tiles do."""
    _tile(ca.load("demo", parity=False), open_slide(file), (0, 0), (1, 1))


def read_pictures_and_masks(file: Path) -> None:
    from clip_anatomy.data import imagenet_segmentation

    imagenet_segmentation._open.cache_clear()
    for entry in open_imagenet_seg(file).entries[:2]:
        entry.picture()
        entry.mask()


def word_tokenizer() -> bytes:
    """Return the `tokenizer.json` of a small tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    ends = ("<|startoftext|>", 0), ("<|endoftext|>", 99)
    made = Tokenizer(models.WordLevel({**dict(ends), "a": 2, "dog": 3}, unk_token="<|endoftext|>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>", special_tokens=[*ends]
    )
    return made.to_str().encode()


def read_tokenizer(file: Path) -> None:
    """Open the folder that transformers saved, with this tokenizer, and split a text."""
    folder = Path(mkdtemp(dir=file.parent))
    try:
        for one in saved_model().iterdir():
            (folder / one.name).symlink_to(one)
        shutil.copy(file, folder / "tokenizer.json")
        ca.load(folder, parity=False).encode_text(["a dog"])
    finally:
        shutil.rmtree(folder)


def search_index() -> bytes:
    """Return what is kept of an approximate index of the small store."""
    return _kept_index().read_bytes()


@cache
def _kept_index() -> Path:
    folder = Path(mkdtemp()) / "store"
    shutil.copytree(store(), folder)
    _search(folder)
    return next(folder.glob("approximate/*/index.json"))


def _search(folder: Path) -> None:
    opened = Store.open(folder)
    ca.search(opened, opened.rows()[0].id, heads="0.0", k=2, approximate=True)


def read_search_index(file: Path) -> None:
    """Search with a record that is damaged: the index is built anew."""
    kept = _kept_index()
    whole = kept.read_bytes()
    try:
        kept.write_bytes(file.read_bytes())
        _search(kept.parents[2])
    finally:
        kept.write_bytes(whole)


def moments() -> bytes:
    return written(lambda path: Store.open(store()).moments().save(path), "m.safetensors")


def walk(source: Path) -> None:
    list(open_dataset(source))


SHAPES = {"counts": [10, 20, 20], "size": [5, 10]}
COCO = {
    "images": [{"id": at, "file_name": f"{at}.jpg", "height": 5, "width": 10} for at in range(2)],
    "annotations": [
        {"id": 1, "image_id": 0, "category_id": 1, "area": 9, "segmentation": SHAPES},
        {"id": 2, "image_id": 1, "category_id": 2, "area": 5, "segmentation": [[0, 0, 4, 0, 4, 4]]},
    ],
}
PHRASES = [{"task_id": "1__0", "image_id": 1, "phrase": "a cat", "Polygons": [[[[0, 0], [4, 0], [4, 4]]], []]}]
TABLE = [{"path": "a.png", "label": "cat", "captions": ["a cat", "a tabby"], "size": 3}]
RECORDS = np.array([(1, "n01"), (2, "n02")], dtype=[("number", "O"), ("name", "O")])
READERS = {
    "picture": Reader(lambda: encoded(noise(20, 20), "PNG"), read_image, "a.png"),
    "photograph": Reader(lambda: encoded(noise(20, 20), "JPEG"), read_image, "a.jpg"),
    "tar": Reader(tar, walk, "a.tar"),
    "table": Reader(text(TABLE), read_table, "a.json"),
    "table of COCO": Reader(text({**COCO, "annotations": [{"image_id": 0, "caption": "a cat"}]}), read_table, "a.json"),
    "CSV": Reader(lambda: b"path,label,caption\na.png,cat,a cat\nb.png,dog,\n", read_table, "a.csv"),
    "list": Reader(lambda: b"a.png\n# no\nb.png\n", walk, "a.txt"),
    "masks": Reader(text(COCO), read_masks, "instances.json"),
    "regions": Reader(text(COCO), lambda path: regions.read_masks(path, "0.jpg", (5, 10)), "regions.json"),
    "references": Reader(references, read_references, "refs(unc).p"),
    "PhraseCut": Reader(text(PHRASES), read_phrases, "refer_test.json"),
    "names of masks": Reader(text({"1": "cat", "2": "wall-brick"}), names_of_masks, "mask_classes.json"),
    "pickle": Reader(lambda: pickle.dumps({"data": [1, 2], "labels": b"x", "size": 3.5}, protocol=2), read_safe_pickle),
    "MATLAB": Reader(lambda: written(lambda path: savemat(path, {"x": np.arange(6.0)}), "a.mat"), lambda path: matlab_table(path, "x"), "a.mat"),
    "structure": Reader(lambda: written(lambda path: savemat(path, {"x": RECORDS}), "a.mat"), lambda path: matlab_records(path, "x"), "a.mat"),
    "weights": Reader(lambda: written(lambda path: torch.save({"a": torch.zeros(4)}, path)), read_state, "w.pt"),
    "safetensors": Reader(lambda: written(lambda path: write_safetensors(path, {"a": torch.zeros(4)}, {}), "w.safetensors"), read_state, "w.safetensors"),
    "config": Reader((DEMO / "open_clip_config.json").read_bytes, read_model, "config.json"),
    "store": Reader(lambda: of_store("store.json"), lambda path: Manifest.load(path.parent), "store.json"),
    "rows": Reader(lambda: of_store("rows.sqlite"), read_store, "rows.sqlite"),
    "moments": Reader(moments, ca.Moments.load, "m.safetensors"),
    "edit": Reader(edit, ca.Edit.load, "e.json"),
    "edit of a re-run": Reader(lambda: rerun().read_bytes(), read_rerun, "e.json"),
    "recordings": Reader(recordings, lambda path: _given(torch.ones(8, 3), path), "r.npz"),
    "config of transformers": Reader(partial(of_saved, "config.json"), read_saved_model, "config.json"),
    "processor": Reader(partial(of_saved, "preprocessor_config.json"), read_saved_model, "preprocessor_config.json"),
    "texts": Reader(lambda: b"a dog\n\na cat\n", lambda path: read_texts([f"@{path}"]), "t.txt"),
    "jobs": Reader(text([{"id": 1, "verb": "name heads", "state": "running"}]), read_jobs, "studio-jobs.json"),
    "atlas": Reader(atlas, ca.Atlas.load, "atlas.json"),
    "studies": Reader(text({"schema": "clip-anatomy/ablate/1", "studies": [{"name": "a", "by": "mean", "store": "s"}]}), lambda path: check_folder(path.parent, "s"), "ablate.json"),
    "pool": Reader(lambda: b"a red circle\tcolour\na star\n", read_pool, "pool.txt"),
    "answer": Reader(text({"choices": [{"message": {"content": "colour"}}], "usage": {"prompt_tokens": 3}}), read_answer),
    "mask": Reader(lambda: encoded(noise(8, 8).convert("P"), "PNG"), read_ids, "m.png"),
    "animation": Reader(partial(film, "a.gif"), read_film, "a.gif"),
    "film": Reader(partial(film, "a.mp4"), read_film, "a.mp4"),
    "slide": Reader(slide, read_pixels, "s.tif"),
    "array": Reader(lambda: written(lambda path: np.save(path, np.zeros((8, 8, 3), np.uint8)), "a.npy"), read_pixels, "a.npy"),
    "HDF5": Reader(pictures_and_masks, read_pictures_and_masks, "gtsegs_ijcv.mat"),
    "tokenizer": Reader(word_tokenizer, read_tokenizer, "tokenizer.json"),
    "search index": Reader(search_index, read_search_index, "index.json"),
    "cache": Reader(lambda: written(lambda path: DiskCache(path).put({"a": b"1" * 9}), "c.sqlite"), read_cache, "c.sqlite"),
}  # fmt: skip


def savemat(path: Path, values: dict[str, Any]) -> None:
    from scipy.io import savemat as write

    write(path, values)
