"""Every family of towers: equal to its host in double precision, and split exactly, under both conventions."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file
from tiny_families import FAMILIES, family, randomized

import clip_anatomy as ca
from clip_anatomy.loading.host import BorrowedTensors, tensors_of
from clip_anatomy.loading.timm_towers import timm_transformer
from clip_anatomy.split.parts import decompose_tower

VISION = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 8}
TEXT = {
    **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 60},
    **{"max_position_embeddings": 8, "bos_token_id": 58, "eos_token_id": 59, "pad_token_id": 1},
}


def transformers_model(name: str) -> Any:
    """A live model of transformers with random weights."""
    towers = {"text_config": dict(TEXT), "vision_config": {**VISION, "image_size": 32}}
    if name.startswith("Siglip"):
        towers["text_config"]["projection_size"] = 48
    if name == "Siglip2":
        towers["vision_config"] = {**VISION, "num_patches": 16}
    config = getattr(transformers, f"{name}Config")(**towers)
    return randomized(getattr(transformers, f"{name}Model")(config))


@pytest.mark.parametrize("name", [*FAMILIES, "Siglip", "Siglip2", "MetaClip2", "CLIPSeg"])
def test_a_family_opens_with_its_proof_and_splits_exactly(name: str) -> None:
    model = family(name) if name in FAMILIES else transformers_model(name)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    clip = ca.load(model)
    assert clip.proof is not None
    assert max(clip.proof.image, clip.proof.text) < 1e-10
    rows, cols = clip.vision.grid
    pixels = torch.randn(2, 3, rows * clip.patch[0], cols * clip.patch[1], generator=torch.Generator().manual_seed(1))
    ids = torch.randint(1, 58, (3, 8), generator=torch.Generator().manual_seed(2))
    ids[:, 5] = 59
    images, texts = clip.encode_image(pixels), clip.encode_text(ids)
    for convention in ("centered", "official"):
        for parts, other in (
            (ca.decompose(clip, pixels, convention), texts),
            (ca.decompose_text(clip, ids, convention), images),
        ):
            assert float(parts.residue.max()) < 1e-5
            toward = parts.toward(other)
            assert float((toward.total() - toward.cosine).abs().max()) < 1e-5
            assert float((parts.tokens(other).sum(3) - toward.heads).abs().max()) < 1e-5
            assert float(toward.heads.abs().min()) > 0  # every head of every layer has a share
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())


def test_the_mlp_behind_a_pool_is_a_part_of_its_own() -> None:
    model = family("siglip")
    clip = ca.load(model)
    parts = ca.decompose(clip, torch.zeros(1, 3, 32, 32))
    pool = model.visual.trunk.attn_pool
    with torch.no_grad():
        tokens = model.visual.trunk.forward_features(torch.zeros(1, 3, 32, 32))
        keys, values = pool.kv(tokens).unflatten(-1, (2, 4, 12)).permute(2, 0, 3, 1, 4)
        query = pool.q(pool.latent).unflatten(-1, (4, 12)).transpose(1, 2)
        u = pool.proj(torch.nn.functional.scaled_dot_product_attention(query, keys, values).transpose(1, 2).flatten(2))
        expected = pool.mlp(pool.norm(u))[:, 0]
    torch.testing.assert_close(parts.mlps[:, -1], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(parts.total() - parts.mlps[:, -1], u[:, 0], atol=1e-5, rtol=1e-5)


def test_scores_of_a_model_trained_text_by_text_are_sigmoids() -> None:
    clip = ca.load(family("siglip"))
    cosine = torch.tensor([[0.2, -0.1]])
    expected = 1 / (1 + np.exp(-(np.exp(1.5) * cosine.numpy() + 1.5)))
    np.testing.assert_allclose(clip.probabilities(cosine).numpy(), expected, rtol=1e-6)
    softmax = ca.load(family("pe")).probabilities(cosine)
    np.testing.assert_allclose(float(softmax.sum()), 1.0, rtol=1e-6)


def test_deit_is_split_as_vit_decompose_splits_it(shared: Path) -> None:
    oracle = shared / "oracles" / "vit_decompose_deit"
    model = timm.create_model("deit_tiny_patch16_224", img_size=64, embed_dim=96, depth=4, num_heads=3, num_classes=10)
    model.load_state_dict(load_file(oracle / "weights.safetensors"))
    model.reset_classifier(0)
    tower = timm_transformer(BorrowedTensors(tensors_of(model.eval())), model, "")
    images = torch.from_numpy(np.load(oracle / "inputs.npz")["images"])
    known = np.load(oracle / "outputs.npz")
    parts = decompose_tower(tower, images, "centered")
    np.testing.assert_allclose(
        parts.embedding.numpy(), known["embedding"], atol=1e-5 * np.abs(known["embedding"]).max()
    )
    # The official code shares the stream's mean and β evenly over all leaves, and b_O over the heads of its layer.
    trace, gamma, beta = parts.trace, tower.ln_post.weight, tower.ln_post.bias
    leaves = len(known["names"])
    share = (beta - trace.stream.mean(-1, keepdim=True) * trace.scale[:, None] * gamma) / leaves
    scale = trace.scale[:, None] * gamma
    for name, expected in zip(known["names"], known["parts_layernorm_fixed"], strict=True):
        if name == "init":
            found = trace.input_embedding * scale + share
        else:
            layer = 3 - int(name[6:8])
            if name.endswith("mlp"):
                found = trace.mlp[:, layer] * scale + share
            else:
                head, block = int(name[-2:]), tower.blocks[layer]
                wrote = trace.mixed[:, layer, head] @ block.out.weight.unflatten(1, (3, 32))[:, head].T
                found = (wrote + block.out.bias / 3) * scale + share
        np.testing.assert_allclose(found.detach().numpy(), expected, atol=1e-5 * np.abs(expected).max(), err_msg=name)
