"""Grad-ECLIP's text side against autograd through the host's own text modules in double precision."""

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor

import clip_anatomy as ca
from clip_anatomy.errors import BadSpec, BadText

pytestmark = pytest.mark.usefixtures("one_thread")

LAYERS, HEADS, D = 3, 2, 8
SENTENCE = "ab c ab"
SPANS = ([1, 2], [3], [4, 5])


class Letters:
    """One token per letter, so that words have several; behind the end mark stands padding."""

    def __call__(self, texts: list[str]) -> Tensor:
        return torch.tensor([[1, *(2 + ord(c) % 90 for c in t.replace(" ", "")), 99, 0] for t in texts])

    def pieces(self, text: str) -> list[str]:
        return ["<s>", *text.replace(" ", ""), "<e>"]


def by_hand(host: torch.nn.Module, embedding: Tensor, layers: int, heads: int, *, key_similarity: bool) -> Tensor:
    """Every block of the text tower written out, the last ones with so many heads, and a gradient by each of their gathered rows."""
    ids = Letters()([SENTENCE])
    end = int(ids.argmax())
    x = host.token_embedding(ids)[0] + host.positional_embedding[: ids.shape[1]]
    blocks = list(host.transformer.resblocks)
    mask = torch.full((len(x), len(x)), float("-inf"), dtype=x.dtype).triu(1)
    kept = []
    for at, block in enumerate(blocks):
        q, k, v = F.linear(block.ln_1(x), block.attn.in_proj_weight, block.attn.in_proj_bias).chunk(3, -1)
        many = heads if at >= len(blocks) - layers else block.attn.num_heads
        parts = [z.view(len(x), many, -1).transpose(0, 1) for z in (q, k, v)]
        scores = parts[0] @ parts[1].transpose(1, 2) / parts[0].shape[-1] ** 0.5 + mask
        gathered = (scores.softmax(-1) @ parts[2]).transpose(0, 1).reshape(len(x), -1)
        gathered.retain_grad()
        kept.append((gathered, q, k, v, block))
        x = x + block.attn.out_proj(gathered)
        x = x + block.mlp(block.ln_2(x))
    cosine = F.normalize(host.ln_final(x[end]) @ host.text_projection, dim=0) @ F.normalize(embedding, dim=0)
    total = torch.zeros(end + 1, dtype=x.dtype)
    for gathered, q, k, v, block in kept[-layers:]:
        (slope,) = torch.autograd.grad(cosine, gathered, retain_graph=True)
        near = F.cosine_similarity(block.attn.out_proj(q[end : end + 1]), block.attn.out_proj(k[: end + 1]), dim=1)
        near = (near - near.min()) / (near.max() - near.min()) if key_similarity else torch.ones_like(near)
        total = total + (v[: end + 1] * slope[end]).sum(1) * near
    tokens = total.clamp(min=0).detach()
    words = torch.stack([tokens[span].sum() for span in SPANS])
    return words / words.sum()


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize(("heads", "key_similarity"), [(None, True), (1, True), (None, False)])
def test_autograd_in_double_precision(layers: int, heads: int | None, key_similarity: bool) -> None:
    host = tiny.open_clip_model(layers=LAYERS, heads=HEADS, d=D).double()
    clip = ca.load(host, tokenizer=Letters(), parity=False, dtype="float64")
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()
    found = ca.word_weights(clip, pixels, SENTENCE, layers=layers, key_similarity=key_similarity, heads=heads)
    assert found.words == ("ab", "c", "ab (2)")
    for embedding, row in zip(host.encode_image(pixels).detach(), found.values, strict=True):
        expected = by_hand(
            host,
            embedding,
            layers,
            heads or host.transformer.resblocks[0].attn.num_heads,
            key_similarity=key_similarity,
        )
        torch.testing.assert_close(row, expected, rtol=1e-8, atol=1e-12)
    alone = ca.word_weights(
        clip, pixels[1:2], SENTENCE, layers=layers, key_similarity=key_similarity, heads=heads
    ).values
    torch.testing.assert_close(alone[0], found.values[1], rtol=1e-9, atol=1e-12)


def test_a_share_moves_with_the_word_that_was_gathered() -> None:
    """Not of the same formula: the cosine when the row gathers a little more of one word's values rises as that word's weight says."""
    host = tiny.open_clip_model(layers=LAYERS, heads=HEADS, d=D).double()
    clip = ca.load(host, tokenizer=Letters(), parity=False, dtype="float64")
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(3)).double()
    unit = F.normalize(host.encode_image(pixels), dim=1)[0].detach()
    found = ca.word_weights(clip, pixels, SENTENCE, key_similarity=False).values[0]
    block, ids = host.transformer.resblocks[-1], Letters()([SENTENCE])
    ids = F.pad(ids, (0, len(host.positional_embedding) - ids.shape[1]))
    values = {}
    block.ln_1.register_forward_hook(lambda _, __, y: values.update(y=y.detach()))
    host.encode_text(ids)
    width = values["y"].shape[-1]
    value = F.linear(values["y"], block.attn.in_proj_weight[2 * width :], block.attn.in_proj_bias[2 * width :])[0]
    step = 1e-6

    def cosine(more: Tensor) -> float:
        end = int(ids.argmax())

        def add(_: object, __: object, out: tuple[Tensor, None]) -> tuple[Tensor, None]:
            written = out[0].clone()
            written[0, end] += F.linear(more, block.attn.out_proj.weight)
            return written, None

        handle = block.attn.register_forward_hook(add)
        try:
            return float(F.normalize(host.encode_text(ids).detach(), dim=1)[0] @ unit)
        finally:
            handle.remove()

    plain = cosine(torch.zeros(width).double())
    tokens = torch.tensor([(cosine(step * one) - plain) / step for one in value]).clamp(min=0)
    words = torch.stack([tokens[span].sum() for span in SPANS])
    torch.testing.assert_close(found, (words / words.sum()).to(found), rtol=1e-3, atol=1e-4)


def test_what_cannot_be_weighed_says_what_to_type() -> None:
    clip = ca.load("demo")
    pixels = torch.randn(1, 3, 64, 64)
    for wrong in ("", "  "):
        with pytest.raises(BadText, match="holds no word"):
            ca.word_weights(clip, pixels, wrong)
    with pytest.raises(BadSpec, match="Type: layers=1"):
        ca.word_weights(clip, pixels, "a bird", layers=0)
    with pytest.raises(BadSpec, match="does not divide the width"):
        ca.word_weights(clip, pixels, "a bird", heads=7)
    cut = ca.word_weights(clip, pixels, " ".join(["bird"] * 29 + ["fish", "star", "moon"]))
    assert cut.left_out == ("star", "moon")
    assert cut.words[1] == "bird (2)"
