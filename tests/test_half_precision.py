"""Maps of models in half precision against the same weights in float32, where a product or a gradient in half precision would be noise."""

import copy
from typing import Any

import pytest
import tiny
import torch
from tiny_resnet import resnet_model
from torch import Tensor

import clip_anatomy as ca
from clip_anatomy.maps.dense_steps import attention_moved
from clip_anatomy.maps.registry import METHODS, RESNET

pytestmark = pytest.mark.usefixtures("one_thread")

SENTENCE = "ab c ab"


class Letters:
    """One token per letter; behind the end mark stands padding."""

    def __call__(self, texts: list[str]) -> Tensor:
        rows = [[1, *(2 + ord(c) % 90 for c in t.replace(" ", "")[:10]), 99] for t in texts]
        return torch.tensor([[*row, *[0] * (12 - len(row))] for row in rows])

    def pieces(self, text: str) -> list[str]:
        return ["<s>", *text.replace(" ", ""), "<e>"]


def test_the_bundled_model_opens_in_any_precision() -> None:
    exact = ca.load("demo", dtype="float64").encode_text(["a bird"])
    for dtype, most in (("float32", 1e-6), ("bfloat16", 0.02), ("float16", 0.003)):
        found = ca.load("demo", dtype=dtype).encode_text(["a bird"])
        assert (found.double() - exact.double()).norm() < most * exact.double().norm()


def drowned(blocks: Any, heads: int, d: int) -> None:
    """Make one channel of every query and key 100: a constant in every score, which softmax ignores and a product in half precision drowns in."""
    with torch.no_grad():
        for block in blocks:
            block.attn.in_proj_weight[: 2 * heads * d : d] = 0
            block.attn.in_proj_bias[: 2 * heads * d : d] = 100


def both(host: Any, dtype: torch.dtype, pixels: Tensor) -> list[tuple[ca.Clip, Any]]:
    """Open it in half precision and, the same weights, in float32; each with its pixels."""
    half = ca.load(host.to(dtype), tokenizer=Letters(), parity=False)
    wide = ca.load(copy.deepcopy(host).float(), tokenizer=Letters(), parity=False)
    return [(half, pixels.to(dtype)), (wide, pixels.to(dtype).float())]


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]).double())[0, 1])


@pytest.mark.parametrize(("dtype", "least", "most"), [(torch.bfloat16, 0.999, 0.04), (torch.float16, 0.99999, 0.01)])
def test_every_map_is_that_of_float32(dtype: torch.dtype, least: float, most: float) -> None:
    host: Any = tiny.open_clip_model(layers=3, heads=2, d=16, embed=24)
    drowned(host.visual.transformer.resblocks, 2, 16)
    generator = torch.Generator().manual_seed(1)
    opened = both(host, dtype, torch.randn(2, 3, 32, 32, generator=generator))
    text = torch.randn(3, 24, generator=generator)
    wrong: list[str] = []
    for method in METHODS:
        options: Any = {"affinity": torch.rand(2, 16, 16, generator=generator)} if METHODS[method].needs else {}
        rounded, plain = (ca.heatmap(clip, x, text, method, **options).values for clip, x in opened)
        together, apart = correlation(rounded, plain), float((rounded - plain).abs().max() / plain.abs().max())
        if not (together > least and apart < most):
            wrong.append(f"{method}: {together:.5f}, {apart:.2%}")
    assert wrong == []
    parts = ca.decompose(*opened[0])
    heads = parts.toward(text).heads
    assert (parts.tokens(text).sum(3) - heads).abs().max() < 0.01 * heads.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_attention_that_is_rounded_to_nothing_can_still_be_moved(dtype: torch.dtype) -> None:
    q, k = (torch.tensor(rows, dtype=dtype)[None, None] for rows in ([[30.0]], [[1.0], [0.0], [-0.125]]))
    v = torch.tensor([[1.0], [2.0], [4.0]], dtype=dtype)[None, None]
    less, more = torch.tensor([[True, False, False]]), torch.tensor([[False, True, True]])
    a = torch.tensor([30.0, 0.0, -3.75], dtype=torch.float64).softmax(0)  # e^-30 beside 1: what wins had 1e-13
    expected = 0.5 * a[0] + 0.5 * a[0] * (a[1:] / a[1:].sum() @ torch.tensor([2.0, 4.0], dtype=torch.float64))
    assert float(attention_moved((q, k, v), less, more, 0.5)) == pytest.approx(float(expected), rel=4e-3)


@pytest.mark.parametrize("method", RESNET)
def test_every_map_of_a_resnet_is_that_of_float32(method: str) -> None:
    """A pool whose embedding is long has gradients below what float16 holds (6e-8), and one channel hides its scores."""
    host = resnet_model()
    pool = host.visual.attnpool
    with torch.no_grad():
        for one in (pool.q_proj, pool.k_proj):
            one.weight[::16], one.bias[::16] = 0, 100
        pool.c_proj.bias *= 20_000
        pool.v_proj.weight *= 0.02
    generator = torch.Generator().manual_seed(2)
    opened = both(host, torch.float16, torch.randn(2, 3, 96, 96, generator=generator))
    text = torch.randn(3, 24, generator=generator)
    rounded, plain = (ca.heatmap(clip, x, text, method).values for clip, x in opened)
    assert correlation(rounded, plain) > 0.999


@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 0.03), (torch.float16, 0.003)])
def test_word_weights_are_those_of_float32(dtype: torch.dtype, most: float) -> None:
    """Heads that write little have gradients below what float16 holds."""
    host: Any = tiny.open_clip_model(layers=3, heads=2, d=8)
    drowned(host.transformer.resblocks, 2, 8)
    with torch.no_grad():
        for block in host.transformer.resblocks:
            block.attn.out_proj.weight *= 1e-5
    opened = both(host, dtype, torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    for layers in (1, 3):
        rounded, plain = (
            ca.word_weights(clip, x, SENTENCE, layers=layers, key_similarity=False).values for clip, x in opened
        )
        torch.testing.assert_close(rounded, plain, rtol=0, atol=most)
