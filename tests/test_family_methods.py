"""What people do with a model, on a SigLIP, a PE-Core and an EVA-02: names, ablation, maps, masks, edits, export."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_families import family

import clip_anatomy as ca
from clip_anatomy.edits.edit import Edit
from clip_anatomy.edits.edited_clip import EditedClip
from clip_anatomy.maps.registry import methods_of

FAMILIES = ("siglip", "pe", "eva02")
UNLIKE = {"proxyclip": "affinity", "grad_eclip": "class token"}  # what they need, or have no meaning without


@pytest.fixture(scope="module", params=FAMILIES)
def clip(request: Any) -> Any:
    return ca.load(family(request.param))


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def texts_of(clip: Any) -> torch.Tensor:
    return torch.randn(8, clip.vision.embed, generator=torch.Generator().manual_seed(4))


def test_heads_are_named_and_their_moments_are_those_of_the_parts(clip: Any, pixels: torch.Tensor) -> None:
    parts, texts = ca.decompose(clip, pixels), texts_of(clip)
    moments = ca.Moments.of(parts)
    span = ca.textspan(moments, torch.nn.functional.normalize(texts, dim=-1), 2)
    assert span.indices.shape[:2] == (2, 4)
    expected = (parts.heads / parts.embedding.norm(dim=-1)[:, None, None, None]).double().mean(0)
    torch.testing.assert_close(moments.mean.squeeze(), expected, atol=1e-6, rtol=1e-5)


def test_every_method_that_has_a_meaning_draws_a_map(clip: Any, pixels: torch.Tensor) -> None:
    texts = texts_of(clip)[:2]
    for name in methods_of(clip):
        if name in UNLIKE:
            continue
        values = ca.heatmap(clip, pixels[:2], texts, method=name).values
        assert values.shape[-2:] == clip.vision.grid
        assert bool(values.isfinite().all()), name


def test_the_map_of_the_decomposition_is_what_heads_read_from_the_patches(clip: Any, pixels: torch.Tensor) -> None:
    texts, own = texts_of(clip)[:2], clip.vision.own
    values = ca.heatmap(clip, pixels[:2], texts, method="decomposition", against="nothing").values
    tokens = ca.decompose(clip, pixels[:2]).tokens(texts).sum((1, 2))[:, own:]
    torch.testing.assert_close(values.flatten(2).transpose(1, 2), tokens, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("parts", ["0.1,1.2", "layer=1", "mlp=0", "last=1+mlp=all", "input-embedding"])
def test_an_edited_encoder_does_what_the_split_says(clip: Any, pixels: torch.Tensor, parts: str) -> None:
    edited = EditedClip(clip, Edit.of(clip, parts, by="zero"))
    expected = ca.replace_parts(clip, pixels, parts, by="zero")
    found = edited.encode_image(pixels)
    assert float((found - expected).norm() / expected.norm()) < 1e-5
    assert float((clip.encode_image(pixels) - expected).norm() / expected.norm()) > 1e-3


def test_an_exported_encoder_runs_alone_and_agrees(clip: Any, tmp_path: Path) -> None:
    import subprocess
    import sys

    ca.export(Edit.of(clip, "1.0", by="zero"), model=clip, out=tmp_path / "out")
    run = [sys.executable, "-I", str(tmp_path / "out" / "edited_clip.py")]
    said = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    assert float(said.split(":")[-1]) < 1e-5
