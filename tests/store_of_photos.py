"""What the tests of stores read, change and damage: sixty photographs of three classes, two of them twins, and a store of them."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import open_clip_model

import clip_anatomy as ca
from clip_anatomy.data.open_dataset import open_dataset
from clip_anatomy.split.moments import Moments
from clip_anatomy.store.index import index

COUNT = 60


@pytest.fixture(scope="module")
def clip():
    torch.set_num_threads(1)
    return ca.load(open_clip_model(layers=3, heads=2, d=8, embed=20), parity=False)


@pytest.fixture(scope="module")
def other():
    return ca.load(open_clip_model(layers=3, heads=2, d=8, embed=20, seed=1), parity=False)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Sixty files of three classes, two of them twins."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for at in range(COUNT):
        levels = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        image = Image.fromarray(levels).resize((33 + at % 7, 36))
        path = folder / f"class {at % 3}" / f"{at:03d}.png"
        path.parent.mkdir(exist_ok=True)
        image.save(path)
    shutil.copy(folder / "class 0" / "000.png", folder / "class 1" / "twin.png")
    return folder


@pytest.fixture(scope="module")
def made(clip, photos, tmp_path_factory):
    """One store of the photos, read-only for the tests."""
    path = tmp_path_factory.mktemp("stores") / "store"
    index(clip, photos, path, keep="heads,mlps", batch=16, commit_seconds=0.0)
    return path


@pytest.fixture
def mine(made, tmp_path):
    """A copy to damage."""
    return shutil.copytree(made, tmp_path / "store")


def walked(folder):
    return list(open_dataset(folder))


def whole_of(store):
    """All heads [image, layer, head, d], read one by one."""
    layers = [[store.heads(layer, head) for head in range(2)] for layer in store.manifest.layers]
    return torch.stack([torch.stack(heads, 1) for heads in layers], 1)


def files_of(store, photos):
    return [photos / row.path for row in store.rows()]


def from_scratch(store, keep=None):
    """Moments by plain numpy in float64."""
    x = whole_of(store).permute(1, 2, 0, 3).double().numpy()
    x = x if keep is None else x[:, :, keep]
    mean = x.mean(2)
    return x.shape[2], mean, np.einsum("lhid,lhie->lhde", x, x) / x.shape[2]


def check_moments(moments: Moments, expected):
    count, mean, second = expected
    assert moments.count == count
    assert np.abs(moments.mean.numpy() - mean).max() < 1e-12
    assert np.abs(moments.uncentred.numpy() - second).max() < 1e-12
