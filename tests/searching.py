"""What the tests of search share: small pictures, a small store of them, and a store of the demo world with its atlas."""

import json
import zlib

import numpy as np
import pytest
import torch
from pictures import encoded, written
from PIL import Image
from tiny import open_clip_model

import clip_anatomy as ca
from clip_anatomy.naming.build_atlas import atlas
from clip_anatomy.store.index import index
from clip_anatomy.store.store import Store

PAIRS = [(1, 0), (0, 1)]


def spots(seed):
    """A small picture that no other seed makes."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8))


def tokenizer(texts):
    """A number for each word, the largest one at the end."""
    ids = torch.zeros(len(texts), 12, dtype=torch.int64)
    for at, text in enumerate(texts):
        words = [98, *(1 + zlib.crc32(word.encode()) % 90 for word in text.split()[:10]), 99]
        ids[at, : len(words)] = torch.tensor(words)
    return ids


@pytest.fixture(scope="module")
def clip():
    torch.set_num_threads(1)
    return ca.load(open_clip_model(layers=2, heads=2, d=8), tokenizer=tokenizer, parity=False)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for at in range(12):
        written(folder / f"{at:02d}.png", encoded(spots(at), "PNG"))
    return folder


@pytest.fixture(scope="module")
def store(clip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    pictures = folder / "photos"
    pictures.mkdir()
    for at in range(40):
        written(pictures / f"{at:02d}.png", encoded(spots(at), "PNG"))
    written(pictures / "copy of 03.png", encoded(spots(3), "PNG"))
    table = [
        {"path": f"{at:02d}.png", "label": "odd" if at % 2 else "even", "captions": [f"a {at}"]} for at in range(40)
    ]
    written(pictures / "metadata.json", json.dumps(table).encode())
    index(clip, pictures, folder / "store")
    return Store.open(folder / "store")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    torch.set_num_threads(1)
    demo = ca.load("demo")
    folder = tmp_path_factory.mktemp("world") / "store"
    index(demo, "world:150:test", folder)
    opened = Store.open(folder)
    return demo, opened, atlas(opened, demo, texts=8, resamples=0, cache=False)
