"""What the tests of stores share: pictures as files, a saved model, two stores compared."""

import json
import time

import pytest
import torch
from pictures import encoded, noise, written
from tiny import open_clip_model

import clip_anatomy as ca
from clip_anatomy.data.open_dataset import open_dataset
from clip_anatomy.store.store import Store


@pytest.fixture(scope="module")
def clip():
    torch.set_num_threads(1)
    return ca.load(open_clip_model(layers=2, heads=2, d=8), parity=False)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for at in range(20):
        written(folder / f"{at:02d}.png", encoded(noise(30 + at, 33), "PNG"))
    return folder


@pytest.fixture
def saved(tmp_path_factory):
    """A model in a folder, as open_clip saves one."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("model")
    save_file(dict(open_clip_model(layers=2, heads=2, d=8).state_dict()), folder / "open_clip_model.safetensors")
    config = {
        "embed_dim": 12,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "layers": 2, "width": 16, "head_width": 8},
        "text_cfg": {"context_length": 12, "vocab_size": 100, "width": 16, "heads": 2, "layers": 2},
    }
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    return folder


def same(one, two):
    """Two stores hold the same: rows, arrays bit for bit, moments to rounding."""
    a, b = Store.open(one), Store.open(two)
    assert [replaced(row) for row in a.rows()] == [replaced(row) for row in b.rows()]
    assert a.column("key") == b.column("key")
    for layer in a.manifest.layers:
        for head in range(a.manifest.heads):
            assert torch.equal(a.heads(layer, head), b.heads(layer, head))
    assert torch.equal(a.embeddings(), b.embeddings())
    assert torch.equal(a.norms(), b.norms())
    m, n = a.moments(), b.moments()
    assert torch.equal(m.counts, n.counts)
    assert torch.allclose(m.means, n.means, atol=1e-14)
    assert torch.allclose(m.scatters, n.scatters, atol=1e-13)
    return True


def replaced(row):
    return {**vars(row), "source": ""}


def slow(folder, seconds=0.1):
    inner = open_dataset(folder)

    class Slow:
        spec = inner.spec

        def __iter__(self):
            for picture in inner:
                time.sleep(seconds)
                yield picture

        count, check, fetch = inner.count, inner.check, inner.fetch

    return Slow()
