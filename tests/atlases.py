"""What the tests of atlases share: the demo world's store with its atlas, and a language model that answers."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from chat import Server, serving

import clip_anatomy as ca
from clip_anatomy.loading.disk_cache import DiskCache
from clip_anatomy.naming.build_atlas import atlas
from clip_anatomy.naming.language_model import LanguageModel
from clip_anatomy.store.index import index
from clip_anatomy.store.store import Store

IMAGES = 300
VERB = ("clip_anatomy.cli.atlas:atlas", "Say what each head is about.")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


_MADE: list[SimpleNamespace] = []


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The bundled model, a store of pictures of its world, and their atlas: made once for all files that ask for it."""
    if _MADE:
        return _MADE[0]
    folder = tmp_path_factory.mktemp("atlas")
    clip = ca.load("demo")
    index(clip, f"world:{IMAGES}:test", folder / "store", workers=1)
    store = Store.open(folder / "store", clip)
    found = atlas(store, clip, resamples=20, images=3, picks=4, cache=folder / "texts.sqlite")
    _MADE.append(SimpleNamespace(clip=clip, store=store, atlas=found, texts=folder / "texts.sqlite"))
    return _MADE[0]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving() as running:
        yield running


def asked(server: Server, tmp_path: Path, **settings: Any) -> LanguageModel:
    return LanguageModel(
        server.url, "tiny", cache=DiskCache(tmp_path / "answers.sqlite"), sleep=lambda _: None, **settings
    )
