"""The dual: texts found for pictures by heads of the text tower."""

import pytest
import torch
from searching import PAIRS, clip, photos, store, world

import clip_anatomy as ca
from clip_anatomy.errors import BadInput, BadSpec
from clip_anatomy.retrieval.text_search import search_captions, search_texts
from clip_anatomy.store.index import index

__all__ = ["clip", "photos", "store", "world"]  # fixtures

# ---- texts


def test_text_heads_split_the_cosine_of_texts(clip):
    texts = ["a dog", "a cat", "one fish", "a dog on a mat"]
    image = clip.encode_image(torch.randn(1, 3, 32, 32))[0]
    found = search_texts(clip, image, texts, PAIRS, k=4)
    parts = ca.decompose_text(clip, texts)
    expected = parts.toward(image[None]).heads[..., 0]
    expected = expected - expected.mean(0)
    want = {text: sum(float(expected[at][layer, head]) for layer, head in PAIRS) for at, text in enumerate(texts)}
    assert {hit.text: hit.score for hit in found.hits} == pytest.approx(want, abs=1e-6)
    assert [hit.score for hit in found.hits] == pytest.approx(sorted(want.values(), reverse=True), abs=1e-6)
    for heads in ("all", "auto", "words=a cat", "1.1"):
        assert search_texts(clip, image, texts, heads, k=2).heads
    for bad in ("9.9", "colour", "1.1,1.1", "", []):
        with pytest.raises(BadSpec, match="text"):
            search_texts(clip, image, texts, bad)


def test_captions_of_a_store(store, clip, photos, tmp_path):
    found = search_captions(store, "05.png", "all", k=3, clip=clip)
    assert found.texts == 40
    assert found.hits[0].ids
    assert found.hits == search_captions(store, "05.png", k=3, clip=clip).hits
    assert found.hits[0].text in repr(found)
    index(clip, photos, tmp_path / "store")
    with pytest.raises(BadInput, match="have no captions"):
        search_captions(tmp_path / "store", "05.png", clip=clip)
    with pytest.raises(BadInput, match="searched by a picture"):
        search_captions(store, "text:a dog", clip=clip)
