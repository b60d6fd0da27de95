"""The proof made on load: thirty small changes of a model are each refused, in every precision, and no good model is."""

from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from trained import heavy_tailed

import clip_anatomy as ca
from clip_anatomy.loading.double_precision import DoublePrecision, in_double
from clip_anatomy.loading.first_difference import first_difference
from clip_anatomy.loading.load import read_host
from clip_anatomy.loading.parity import compare, exact_tolerance, prove, random_pixels, random_texts
from clip_anatomy.towers.layers import Linear, Norm
from clip_anatomy.towers.transformer import Transformer

pytestmark = pytest.mark.usefixtures("one_thread")

HEADS, D = 4, 8
PRECISIONS = [torch.float32, torch.bfloat16, torch.float16]
Change = Callable[[Transformer], Transformer]


def model_with(heavy: bool, dtype: torch.dtype) -> Any:
    model = tiny.open_clip_model(layers=3, heads=HEADS, d=D, vision={"ls_init_value": 0.5})
    return (heavy_tailed(model) if heavy else model).to(dtype)


def in_block(at: int, **change: Callable[[Any], Any]) -> Change:
    """A tower in one of whose blocks each named field is what its function makes of it."""

    def changed(tower: Transformer) -> Transformer:
        blocks = list(tower.blocks)
        blocks[at] = replace(blocks[at], **{name: to(getattr(blocks[at], name)) for name, to in change.items()})
        if not {"query", "key", "value"}.isdisjoint(change):
            blocks[at] = replace(blocks[at], qkv=None)
        return replace(tower, blocks=tuple(blocks))

    return changed


def of_tower(**change: Callable[[Any], Any]) -> Change:
    return lambda tower: replace(tower, **{name: to(getattr(tower, name)) for name, to in change.items()})


def of_embedding(**change: Callable[[Any], Any]) -> Change:
    return of_tower(embedding=lambda e: replace(e, **{name: to(getattr(e, name)) for name, to in change.items()}))


def without_bias(layer: Linear) -> Linear:
    return replace(layer, bias=None)


def without_head(layer: Linear, head: int = 1) -> Linear:
    weight = layer.weight.clone()
    weight[:, head * D : (head + 1) * D] = 0
    return replace(layer, weight=weight)


def in_order(order: list[int], layer: Linear) -> Linear:
    return replace(layer, weight=layer.weight.unflatten(1, (HEADS, D))[:, order].flatten(1))


def interleaved(layer: Linear) -> Linear:
    return replace(layer, weight=layer.weight.unflatten(1, (HEADS, D)).transpose(1, 2).flatten(1))


def scaled(by: float, layer: Linear) -> Linear:
    return replace(layer, weight=layer.weight * by)


def unbiased(norm: Norm) -> Norm:
    return replace(norm, bias=torch.zeros_like(norm.bias))


def swapped(a: int, b: int, tower: Transformer) -> Transformer:
    blocks = list(tower.blocks)
    blocks[a], blocks[b] = blocks[b], blocks[a]
    return replace(tower, blocks=tuple(blocks))


def nothing(layer: Linear) -> Linear:
    return Linear(torch.zeros_like(layer.weight), None)


def rolled(table: torch.Tensor) -> torch.Tensor:
    return table.roll(1, 0)


IMAGE: dict[str, Change] = {
    "a head of the last block missing": in_block(2, out=without_head),
    "a head of the first block missing": in_block(0, out=without_head),
    "two heads swapped": in_block(1, out=partial(in_order, [1, 0, 2, 3])),
    "heads in reverse order": in_block(2, out=partial(in_order, [3, 2, 1, 0])),
    "heads and their channels interleaved": in_block(0, out=interleaved),
    "attention of the last block off": in_block(2, out=nothing),
    "MLP of the first block off": in_block(0, down=nothing),
    "query without bias": in_block(0, query=without_bias),
    "value without bias": in_block(1, value=without_bias),
    "attention without its output bias": in_block(1, out=without_bias),
    "MLP without its first bias": in_block(0, up=without_bias),
    "MLP without its second bias": in_block(2, down=without_bias),
    "attention one percent sharper": in_block(1, query=partial(scaled, 1.01)),
    "first norm of a block without bias": in_block(1, ln1=unbiased),
    "second norm of a block without bias": in_block(2, ln2=unbiased),
    "another epsilon in one norm": in_block(0, ln1=lambda n: replace(n, eps=1e-6)),
    "no norm before the blocks": of_tower(ln_pre=lambda _: None),
    "last norm without bias": of_tower(ln_post=unbiased),
    "one LayerScale missing": in_block(1, scale_attention=lambda _: None),
    "the other LayerScale missing": in_block(2, scale_mlp=lambda _: None),
    "QuickGELU for GELU": of_tower(activation=lambda _: "quick_gelu"),
    "tanh for GELU": of_tower(activation=lambda _: "gelu_tanh"),
    "two blocks swapped": partial(swapped, 0, 1),
    "the last block missing": of_tower(blocks=lambda blocks: blocks[:2]),
    "mean of the patches for the class token": of_tower(pool=lambda _: "mean"),
    "no class token": of_embedding(class_token=torch.zeros_like),
    "position vectors shifted by one": of_embedding(position=rolled),
    "patches read by columns": of_embedding(weight=lambda w: w.transpose(2, 3)),
    "blue before red": of_embedding(weight=lambda w: w.flip(1)),
    "projection bias that is not there": of_tower(projection_bias=lambda _: torch.full((12,), 1e-3)),
}
TEXT: dict[str, Change] = {
    "no causal mask": of_tower(causal=lambda _: False),
    "the last token read": of_tower(pool=lambda _: "last"),
    "the first token read": of_tower(pool=lambda _: "first"),
    "positions of words shifted by one": of_embedding(position=rolled),
    "a head of a text missing": in_block(2, out=without_head),
    "QuickGELU for GELU in texts": of_tower(activation=lambda _: "quick_gelu"),
}


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("heavy", [False, True], ids=["plain", "heavy"])
def test_each_small_change_is_refused(heavy: bool, dtype: torch.dtype) -> None:
    host = read_host(model_with(heavy, dtype))
    image, text = host.image_tower, host.text_tower
    assert isinstance(image, Transformer)
    pixels, ids = random_pixels(image), random_texts(text)
    as_read = (image, host.encode_image, pixels), (text, host.encode_text, ids)
    assert all(one.holds for sides in as_read for one in compare(*sides, against="a host"))
    changed = {name: (change(image), host.encode_image, pixels) for name, change in IMAGE.items()}
    changed |= {name: (change(text), host.encode_text, ids) for name, change in TEXT.items()}
    assert len(changed) >= 30
    assert [name for name, sides in changed.items() if compare(*sides, against="a host")[0].holds] == []


def block_of(model: Any, at: int) -> Any:
    return model.visual.transformer.resblocks[at]


def attention_off(model: Any) -> None:
    block_of(model, 2).attn.register_forward_hook(lambda _m, _i, out: (out[0] * 0, *out[1:]))


def head_off(model: Any) -> None:
    """Subtract what head 0 writes, as the module itself would compute it."""

    def without(module: Any, args: Any, _kwargs: Any, out: Any) -> Any:
        x = args[0]
        heads = F.linear(x, module.in_proj_weight, module.in_proj_bias).unflatten(-1, (3, HEADS, D))
        q, k, v = heads[:, :, :, 0].unbind(2)
        return (out[0] - F.linear(F.scaled_dot_product_attention(q, k, v), module.out_proj.weight[:, :D]), *out[1:])

    block_of(model, 1).attn.register_forward_hook(without, with_kwargs=True)


def other_gelu(model: Any) -> None:
    gelu = block_of(model, 0).mlp.gelu
    gelu.forward = lambda x: F.gelu(x, approximate="tanh")


def future_seen(model: Any) -> None:
    model.attn_mask.zero_()


def patches_rolled(model: Any) -> None:
    model.visual.conv1.register_forward_hook(lambda _m, _i, out: out.roll(1, 2))


def other_projection(model: Any) -> None:
    model.visual.ln_post.register_forward_hook(lambda _m, _i, out: out * 1.001)


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize(
    ("change", "place"),
    [
        (attention_off, "image tower is another from here on: layer 2, attention"),
        (head_off, "image tower is another from here on: layer 1, head 0, which is missing there"),
        (other_gelu, "image tower is another from here on: layer 0, MLP"),
        (future_seen, "text tower is another from here on: layer 0, (attention|MLP)"),
        (patches_rolled, "image tower is another from here on: what goes into layer 0"),
        (other_projection, "image tower is another from here on: what follows the last layer"),
    ],
)
def test_a_host_that_computes_something_else_is_refused(
    change: Callable[[Any], None], place: str, dtype: torch.dtype
) -> None:
    model = model_with(heavy=True, dtype=dtype)
    assert ca.load(model).proof is not None
    change(model)
    with pytest.raises(ca.errors.ParityError, match=rf"(?s)tower, embedding = open_clip .*allowed 1e-12.*{place}"):
        ca.load(model)


def test_the_place_of_each_small_change_is_named() -> None:
    host = read_host(model_with(heavy=False, dtype=torch.float32))
    image = host.image_tower
    assert isinstance(image, Transformer)
    places = {
        name: first_difference(IMAGE[name](image), host.encode_image, random_pixels(image))
        for name in (
            "two heads swapped",
            "value without bias",
            "MLP of the first block off",
            "no class token",
            "last norm without bias",
        )
    }
    assert places == {
        "two heads swapped": "layer 1, attention",
        "value without bias": "layer 1, attention",
        "MLP of the first block off": "layer 0, MLP",
        "no class token": "what goes into layer 0",
        "last norm without bias": "what follows the last layer",
    }


GOOD: list[dict[str, Any]] = [
    {},
    {"quick_gelu": True},
    {"heads": 4, "d": 16, "layers": 4},
    {"vision": {"pool_type": "avg"}, "text": {"pool_type": "last"}},
    {"vision": {"pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True}},
]


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("heavy", [False, True], ids=["plain", "heavy"])
@pytest.mark.parametrize("config", GOOD, ids=str)
def test_good_models_open(config: dict[str, Any], heavy: bool, dtype: torch.dtype) -> None:
    model: Any = tiny.open_clip_model(**config)
    proof = ca.load((heavy_tailed(model) if heavy else model).to(dtype)).proof
    assert proof is not None
    assert max(proof.image, proof.text) < 1e-13, "nothing but rounding of float64, far below what a change makes"


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
def test_good_models_of_transformers_open(dtype: torch.dtype) -> None:
    assert ca.load(tiny.transformers_model().to(dtype)).proof is not None


@pytest.mark.parametrize("times", [1e7, 1e9])
def test_a_head_does_not_hide_behind_massive_channels(times: float) -> None:
    """Four channels so large that the head moves the embedding by 1e-7, or 1e-9: far below rounding in float32."""
    model = model_with(heavy=False, dtype=torch.float32)
    with torch.no_grad():
        block_of(model, 1).mlp.c_proj.weight[:4] *= times
        block_of(model, 1).mlp.c_proj.bias[:4] *= times
    host = read_host(model)
    assert isinstance(host.image_tower, Transformer)
    without = IMAGE["a head of the last block missing"](host.image_tower)
    exact, rounding = compare(without, host.encode_image, random_pixels(without), against="a host")
    assert rounding.holds, "in float32 it cannot be told"
    assert not exact.holds


def test_the_tolerance_follows_how_much_a_model_multiplies_rounding() -> None:
    def at(hosts: float, dtype: torch.dtype) -> float:
        return exact_tolerance(hosts, dtype, torch.float64)

    assert at(3e-7, torch.float32) == at(8e-3, torch.bfloat16) == 1e-12
    assert at(1e-4, torch.float32) == pytest.approx(100 * 1e-4 * 2**-29)
    assert at(1e-4, torch.float32) > at(1e-4, torch.float16)
    assert at(1.0, torch.float32) == at(0.0, torch.float64) == 1e-10


def test_sharp_attention_is_no_reason_to_refuse() -> None:
    """Rounding may exceed the usual bound where the host's own does as well."""
    model: Any = tiny.open_clip_model(layers=8, heads=4, d=16)
    with torch.no_grad():
        for block in model.visual.transformer.resblocks:
            block.attn.in_proj_weight[:128] *= 4
    proof = ca.load(model).proof
    assert proof is not None
    rounding = next(one for one in proof.rounding if one.tower == "image")
    assert rounding.claim == "rounding in float32"
    assert rounding.difference > 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_double_precision_is_what_the_widened_module_computes(dtype: torch.dtype) -> None:
    """Against modules that torch itself casts."""
    for model in (tiny.open_clip_model().to(dtype), tiny.transformers_model().to(dtype)):
        before = {name: p.clone() for name, p in model.named_parameters()}
        host = read_host(model)
        pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
        found = in_double(host.encode_image, pixels.to(dtype))
        assert all(torch.equal(p, before[name]) and p.dtype == dtype for name, p in model.named_parameters())
        with torch.no_grad():
            truth = read_host(model.double()).encode_image(pixels.to(dtype).double())
        assert torch.allclose(found, truth, rtol=1e-12, atol=0)


def test_casts_to_less_stay_wide_and_views_stay_views() -> None:
    third = torch.tensor([1.0]).double() / 3
    with DoublePrecision():
        assert torch.equal(third.float(), third)
        assert torch.equal(F.softmax(torch.stack([third, -third]), 0, dtype=torch.float32).sum(), torch.tensor(1.0))
        canvas = torch.zeros(2, dtype=torch.float16)
        canvas[:1] += third
        assert torch.equal(canvas, torch.cat([third, third * 0]))
        assert torch.arange(3).dtype == torch.int64
    assert third.float().dtype == torch.float32


class Overflowing(Transformer):
    """Computes the same, but not in half precision."""

    def encode(self, inputs: torch.Tensor) -> torch.Tensor:
        embedding = super().encode(inputs)
        return embedding * (1.1 if embedding.dtype == torch.float16 else 1)


def test_what_half_precision_loses_is_told_from_another_function() -> None:
    host = read_host(tiny.open_clip_model().half())
    assert isinstance(host.image_tower, Transformer)
    lossy = Overflowing(**{f.name: getattr(host.image_tower, f.name) for f in fields(Transformer)})
    with pytest.raises(ca.errors.ParityError, match=r"rounding in float16: 1\.0e-01.*ours loses it .*dtype='float32'"):
        prove(lossy, host.text_tower, host.encode_image, host.encode_text, against="a host")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_norms_that_a_library_keeps_in_float32(precision: str) -> None:
    """open_clip's mixed models cast to float32 in each LayerNorm, which would hide a tenth of a millionth."""
    import open_clip

    model: Any = tiny.open_clip_model()
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    mixed = open_clip.CLIP(
        12,
        {"image_size": 32, "patch_size": 8, "layers": 2, "width": 16, "head_width": 8},
        {"context_length": 12, "vocab_size": 100, "width": 16, "heads": 2, "layers": 2},
        cast_dtype=dtype,
    ).eval()
    mixed.load_state_dict(model.state_dict())
    open_clip.model.convert_weights_to_lp(mixed, dtype=dtype)
    assert mixed.visual.ln_post.weight.dtype == torch.float32
    proof = ca.load(mixed).proof
    assert proof is not None
    assert max(proof.image, proof.text) < 1e-13
