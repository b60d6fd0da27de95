"""The split is exact: against the host, against a loop written out longhand, against the official code's outputs."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

import clip_anatomy as ca
from clip_anatomy.split.layernorm import check_convention


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


shapes = st.fixed_dictionaries(
    {
        "layers": st.integers(1, 4),
        "heads": st.integers(1, 4),
        "d": st.sampled_from([4, 8, 20]),
        "size": st.sampled_from([16, 32]),
        "patch": st.sampled_from([8, 16]),
        "embed": st.sampled_from([5, 12, 40]),
        "quick_gelu": st.booleans(),
        "vision": st.sampled_from(
            [
                {},
                {"no_ln_pre": True},
                {"ls_init_value": 0.5},
                {"pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True},
                {"pool_type": "avg"},
                {"mlp_ratio": 2.0},
            ]
        ),
        "text": st.sampled_from(
            [{}, {"pool_type": "last", "no_causal_mask": True}, {"pool_type": "eos", "eos_id": 7}, {"proj_bias": True}]
        ),
        "seed": st.integers(0, 100),
    }
)


@given(shape=shapes, convention=st.sampled_from(["centered", "official"]), grid=st.sampled_from([None, (2, 3), (5, 1)]))
@settings(max_examples=25, deadline=None)
def test_parts_sum_to_the_hosts_embedding(shape: dict[str, Any], convention: Any, grid: tuple[int, int] | None) -> None:
    model = tiny.open_clip_model(**shape)
    clip = ca.load(model)
    patch = shape["patch"]
    rows, cols = grid or (shape["size"] // patch, shape["size"] // patch)
    pixels = torch.randn(3, 3, rows * patch, cols * patch, generator=torch.Generator().manual_seed(1))
    parts = ca.decompose(clip, pixels, convention)
    if grid is None:
        with torch.no_grad():
            assert relative(parts.total(), model.encode_image(pixels)) <= 1e-5
    assert parts.residue.max() <= 1e-5
    text = torch.randn(4, shape["embed"], generator=torch.Generator().manual_seed(2))
    toward = parts.toward(text)
    cosine = torch.nn.functional.cosine_similarity(clip.encode_image(pixels)[:, None], text[None], dim=-1)
    torch.testing.assert_close(toward.total(), cosine, atol=2e-5, rtol=0)
    torch.testing.assert_close(parts.tokens(text).sum(3), toward.heads, atol=1e-5, rtol=0)


@given(shape=shapes, convention=st.sampled_from(["centered", "official"]))
@settings(max_examples=15, deadline=None)
def test_text_parts_sum_to_the_hosts_embedding(shape: dict[str, Any], convention: Any) -> None:
    model = tiny.open_clip_model(**shape)
    clip = ca.load(model)
    ids = torch.randint(8, 99, (3, 12), generator=torch.Generator().manual_seed(3))
    ids[0, 5:], ids[1, 9:] = 0, 0
    ids[torch.arange(3), torch.tensor([5, 9, 11])] = 7 if shape["text"].get("pool_type") == "eos" else 99
    parts = ca.decompose_text(clip, ids, convention)
    with torch.no_grad():
        assert relative(parts.total(), model.encode_text(ids)) <= 1e-5
    image = torch.randn(4, shape["embed"], generator=torch.Generator().manual_seed(2))
    toward = parts.toward(image)
    torch.testing.assert_close(toward.total(), toward.cosine, atol=2e-5, rtol=0)
    torch.testing.assert_close(parts.tokens(image).sum(3), toward.heads, atol=1e-5, rtol=0)
    if clip.text_tower.causal:
        behind = parts.tokens(image)[0, :, :, 6:]
        assert behind.abs().max() == 0 or convention == "official"


def longhand(model: Any, pixels: Tensor, text: Tensor) -> Tensor:
    """Per-token contributions to the cosine, one head and one token at a time, from the host's modules (`centered` centring)."""
    visual = model.visual
    x = visual._embeds(pixels)
    heads, d = (
        visual.transformer.resblocks[0].attn.num_heads,
        x.shape[-1] // visual.transformer.resblocks[0].attn.num_heads,
    )
    written = []
    for block in visual.transformer.resblocks:
        y = block.ln_1(x)
        q, k, v = (y @ block.attn.in_proj_weight.T + block.attn.in_proj_bias).chunk(3, -1)
        rows = []
        for h in range(heads):
            s = slice(h * d, (h + 1) * d)
            a = torch.softmax((q[:, 0, None, s] * k[..., s]).sum(-1) / d**0.5, -1)
            rows.append((a[..., None] * v[..., s]) @ block.attn.out_proj.weight[:, s].T)
        written.append(torch.stack(rows, 1))
        x = block(x)
    stream = x[:, 0]
    sigma = (stream.var(-1, unbiased=False) + visual.ln_post.eps).sqrt()
    parts = torch.stack(written, 1)  # [image layer head token width]
    joint = ((parts - parts.mean(-1, keepdim=True)) / sigma.view(-1, 1, 1, 1, 1) * visual.ln_post.weight) @ visual.proj
    unit = torch.nn.functional.normalize(text, dim=-1)
    return joint @ unit.T / model.encode_image(pixels).norm(dim=-1).view(-1, 1, 1, 1, 1)


def test_tokens_equal_the_longhand_sum_and_batch_equals_one_by_one() -> None:
    model = tiny.open_clip_model(layers=3, heads=3)
    clip, pixels, text = ca.load(model), torch.randn(4, 3, 32, 32), torch.randn(5, 12)
    with torch.no_grad():
        expected = longhand(model, pixels, text)
    torch.testing.assert_close(ca.decompose(clip, pixels).tokens(text), expected, atol=1e-6, rtol=1e-4)
    given = ca.decompose(clip, pixels, texts=text)
    torch.testing.assert_close(given.tokens(text), expected, atol=1e-6, rtol=1e-4)
    for convention in ("centered", "official"):
        batch = ca.decompose(clip, pixels, convention)
        for i in range(4):
            one = ca.decompose(clip, pixels[i : i + 1], convention)
            for name in ("embedding", "heads", "mlps", "input_embedding", "bias"):
                torch.testing.assert_close(getattr(one, name)[0], getattr(batch, name)[i], atol=1e-5, rtol=1e-4)


def test_a_part_that_writes_nothing_contributes_nothing_under_own() -> None:
    model: Any = tiny.open_clip_model()
    with torch.no_grad():
        model.visual.transformer.resblocks[1].mlp.c_proj.weight.zero_()
        model.visual.transformer.resblocks[1].mlp.c_proj.bias.zero_()
    clip, pixels = ca.load(model), torch.randn(2, 3, 32, 32)
    assert ca.decompose(clip, pixels, "centered").mlps[:, 1].abs().max() == 0
    assert ca.decompose(clip, pixels, "official").mlps[:, 1].abs().max() > 0


@pytest.fixture(scope="module")
def oracle(shared: Path) -> Any:
    import open_clip

    folder = shared / "oracles" / "vit-a"
    config = json.loads((folder / "oracle-vit.json").read_text())
    model = open_clip.CLIP(
        **{k: v for k, v in config.items() if k in ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu")}
    )
    model.load_state_dict({k: v.float() for k, v in load_file(folder / "weights.safetensors").items()})
    inputs, found = np.load(folder / "inputs.npz"), np.load(folder / "decomposition.npz")
    return ca.load(model.eval()), torch.tensor(inputs["images"]).float(), found


def test_the_official_code_agrees(oracle: Any) -> None:
    clip, images, found = oracle

    def theirs(name: str) -> Tensor:
        return torch.tensor(found[name]).float()

    parts = ca.decompose(clip, images, "official")
    length = parts.embedding.norm(dim=-1)
    assert relative(parts.embedding, theirs("embedding")) <= 2e-5
    assert relative(parts.heads / length[:, None, None, None], theirs("heads")) <= 2e-5
    mlps = torch.cat([parts.input_embedding[:, None], parts.mlps], 1)
    assert relative(mlps / length[:, None, None], theirs("mlps")) <= 2e-5
    assert relative(parts.class_to_class() / length[:, None, None], theirs("cls_to_cls")) <= 2e-5
    tokens = ca.decompose(clip, images[:4], "official").tokens(torch.eye(96))  # identity texts read out the joint space
    assert relative(tokens.transpose(2, 3), theirs("tokens_first4")) <= 2e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_sum_in_float32_with_a_stated_error(dtype: torch.dtype) -> None:
    model = tiny.open_clip_model(heads=4, d=16).to(dtype)
    clip = ca.load(model)
    parts = ca.decompose(clip, torch.randn(2, 3, 32, 32))
    assert parts.heads.dtype == torch.float32
    assert 0 < parts.residue.max() < (5e-3 if dtype == torch.float16 else 5e-2)
    text = torch.randn(3, 12)
    torch.testing.assert_close(parts.tokens(text).sum(3), parts.toward(text).heads, atol=2e-2, rtol=0)


def state(model: nn.Module) -> dict[str, Any]:
    return {
        "tensors": {k: v.clone() for k, v in [*model.named_parameters(), *model.named_buffers()]},
        "pointers": {k: v.data_ptr() for k, v in [*model.named_parameters(), *model.named_buffers()]},
        "versions": {k: v._version for k, v in model.named_parameters()},
        "grad": {k: (v.requires_grad, v.grad) for k, v in model.named_parameters()},
        "modes": {k: m.training for k, m in model.named_modules()},
        "hooks": {
            k: (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
            for k, m in model.named_modules()
        },
        "forwards": {k: (type(m).forward, "forward" in vars(m)) for k, m in model.named_modules()},
    }


@pytest.mark.parametrize("make", [tiny.open_clip_model, tiny.transformers_model])
@pytest.mark.parametrize("training", [False, True])
def test_the_users_model_is_untouched(make: Any, training: bool) -> None:
    model = make().train(training)
    next(model.parameters()).requires_grad_(False)
    before, rng = copy.copy(state(model)), torch.get_rng_state()
    clip = ca.load(model)
    pixels = torch.randn(2, 3, 48, 32, generator=torch.Generator().manual_seed(0))
    for convention in ("centered", "official"):
        parts = ca.decompose(clip, pixels, convention, texts=torch.ones(2, 12))
        parts.tokens(-torch.ones(3, 12))
        parts.class_to_class()
    ca.decompose_text(clip, torch.full((2, 12), 99))
    after = state(model)
    assert torch.equal(torch.get_rng_state(), rng)
    for key in before.keys() - {"tensors"}:
        assert before[key] == after[key], key
    assert all(torch.equal(v, after["tensors"][k]) for k, v in before["tensors"].items())


def test_nothing_of_size_tokens_squared_or_tokens_times_embed_is_ever_made() -> None:
    """Every tensor that the split makes is watched: none has two axes of tokens, or one of tokens and one of embed."""
    from torch.utils._python_dispatch import TorchDispatchMode

    tokens, embed = 37, 41  # primes: no other axis has these lengths

    class Watch(TorchDispatchMode):
        seen: list[tuple[int, ...]] = []

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for t in out if isinstance(out, tuple | list) else [out]:
                if isinstance(t, Tensor):
                    Watch.seen.append(tuple(t.shape))
            return out

    clip = ca.load(tiny.open_clip_model(size=48, patch=8, embed=embed))
    with Watch():
        ca.decompose(clip, torch.randn(2, 3, 48, 48), texts=torch.randn(3, embed))
    assert any(tokens in s for s in Watch.seen)
    assert not [s for s in Watch.seen if s.count(tokens) > 1 or (tokens in s and embed in s)]


def test_a_trace_keeps_its_rows_alone_alive() -> None:
    """A row that is a view would keep every token of every layer in memory."""
    trace = ca.decompose(ca.load(tiny.open_clip_model()), torch.randn(2, 3, 32, 32)).trace
    for name in ("input_embedding", "mixed", "mlp", "stream"):
        t = getattr(trace, name)
        assert t.untyped_storage().nbytes() == t.numel() * t.element_size(), name


def test_unknown_convention_says_what_to_type() -> None:
    with pytest.raises(ca.errors.BadSpec, match="Type one of: 'centered', 'official'"):
        check_convention("even")
