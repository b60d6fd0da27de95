"""SigLIP 2 of any size: every picture at its own shape, as transformers sees it, and pictures of several shapes in one run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import transformers
from PIL import Image
from tiny_transformers import tiny_transformers

import clip_anatomy as ca
from clip_anatomy.errors import BadImage, BadSpec
from clip_anatomy.images.preprocess import Preprocess, whole_patches

pytestmark = pytest.mark.usefixtures("one_thread")
SIZES = ((640, 480), (31, 17), (300, 60), (50, 50), (900, 100))  # Pillow's order


def photo(size: tuple[int, int]) -> Image.Image:
    generator = np.random.default_rng(size[0])
    return Image.fromarray(generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def clip() -> Any:
    return ca.load(tiny_transformers("Siglip2Model"))


def test_sides_are_those_of_the_hosts_search() -> None:
    from transformers.models.siglip2.image_processing_siglip2 import get_image_size_for_max_num_patches

    for rows, cols in ((480, 640), (17, 31), (60, 300), (1000, 1), (1, 1), (224, 224), (3000, 4000)):
        for side, most in ((16, 256), (8, 16), (14, 729)):
            expected = get_image_size_for_max_num_patches(rows, cols, side, most)
            assert whole_patches(rows, cols, side, most) == expected


def test_pictures_of_every_aspect_have_the_hosts_embedding(clip: Any) -> None:
    processor = transformers.Siglip2ImageProcessor(patch_size=8, max_num_patches=16)
    pictures = [photo(size) for size in SIZES]
    with torch.no_grad():
        expected = tiny.features(clip.host.get_image_features(**processor(pictures, return_tensors="pt")))
    found = clip.encode_image(pictures)  # five shapes; the host pads them all to 16 patches and masks the rest
    error = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert float(error.max()) < 2e-3, "torchvision's filter rounds some pixels to the next of 255 levels"
    exact = processor(pictures[0], return_tensors="pt")
    pixels = exact["pixel_values"][0][:12].view(3, 4, 8, 8, 3).permute(4, 0, 2, 1, 3).reshape(1, 3, 24, 32)
    torch.testing.assert_close(clip.vision.encode(pixels), expected[:1], atol=1e-5, rtol=1e-5)
    with pytest.raises(BadImage, match=r"a shape of its own.* Type one picture at a time"):
        clip.pixels(pictures)


def test_an_explanation_has_a_map_of_each_pictures_own_shape(clip: Any) -> None:
    texts = torch.randn(2, 48, generator=torch.Generator().manual_seed(1))
    for size, grid in ((640, 480), (3, 4)), ((900, 100), (1, 9)):
        values = ca.heatmap(clip, photo(size), texts, method="decomposition").values
        assert values.shape == (1, 2, *grid)
        parts = ca.decompose(clip, photo(size))
        assert float(parts.residue.max()) < 1e-5


def test_a_store_holds_pictures_of_several_shapes_each_with_its_own_parts(clip: Any, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for i, size in enumerate((*SIZES, *SIZES)):
        photo(size).save(tmp_path / "photos" / f"{i:02}.png")
    (tmp_path / "photos" / "03b.png").write_bytes(b"no picture")
    ca.index(clip, tmp_path / "photos", tmp_path / "store", batch=8)
    store = ca.Store.open(tmp_path / "store")
    names = store.column("id")
    assert len(set(names)) == 2 * len(SIZES)
    expected = torch.cat([clip.encode_image(tmp_path / "photos" / name) for name in names])
    torch.testing.assert_close(torch.as_tensor(store.embeddings()), expected, atol=5e-3, rtol=5e-3)


def test_the_preprocessing_survives_its_dictionary_and_refuses_half_of_it(clip: Any) -> None:
    assert Preprocess.from_dict(clip.preprocess.to_dict()) == clip.preprocess
    assert clip.preprocess.at(64).patches == (8, 64)
    with pytest.raises(BadSpec, match=r"Type: resize='patches', patches="):
        Preprocess.from_dict({**clip.preprocess.to_dict(), "patches": None})
    with pytest.raises(BadSpec, match=r"both or neither"):
        Preprocess.from_dict({**clip.preprocess.to_dict(), "resize": "squash"})
