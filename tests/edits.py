"""What the tests of edits share: noise as pixels, comparisons relative to the largest number, a tiny model and its means."""

from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

import clip_anatomy as ca
from clip_anatomy.split.means import Means

SPEC = "0.1,1.0,2.2+mlp=0,2+class-to-class=1,2+input-embedding"


def pixels(n: int, seed: int = 0, size: tuple[int, int] = (32, 32)) -> Tensor:
    return torch.randn(n, 3, *size, generator=torch.Generator().manual_seed(seed))


def close(a: Tensor, b: Tensor, atol: float = 2e-5) -> None:
    a, b = a.detach().double(), b.detach().double()
    torch.testing.assert_close(a, b, atol=atol * float(b.abs().max()), rtol=0)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.set_num_threads(1)
    return tiny.open_clip_model(layers=3, heads=3)


@pytest.fixture(scope="module")
def clip(model: nn.Module) -> Any:
    return ca.load(model)


@pytest.fixture(scope="module")
def means(clip: Any) -> Means:
    return Means.of(clip, pixels(7, 9), class_to_class=True)
