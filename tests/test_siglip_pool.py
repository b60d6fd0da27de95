"""SigLIP's attention pool split at itself, equal to the official code's outputs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from clip_anatomy.loading.host import BorrowedTensors, tensors_of
from clip_anatomy.loading.transformers_towers import image_tower
from clip_anatomy.naming.textspan import RankWarning, textspan
from clip_anatomy.split.moments import Moments
from clip_anatomy.split.pool_heads import pool_parts


def test_the_pool_s_heads_mlp_maps_and_names_are_the_official_ones(shared: Path) -> None:
    oracle = shared / "oracles" / "siglip_pool"
    config = transformers.SiglipVisionConfig(**json.loads((oracle / "config.json").read_text()))
    model = transformers.SiglipVisionModel(config).eval()
    prefix = "vision_model." if any(name.startswith("vision_model.") for name in model.state_dict()) else ""
    weights = load_file(oracle / "weights.safetensors")
    model.load_state_dict({prefix + name.removeprefix("vision_model."): x for name, x in weights.items()})
    tower = image_tower(BorrowedTensors(tensors_of(model)), config)
    given, known = np.load(oracle / "inputs.npz"), np.load(oracle / "outputs.npz")
    parts = pool_parts(tower, torch.from_numpy(given["images"]))
    bias = known["attention_bias"]
    for name, found, expected in (
        ("embedding", parts.embedding, known["embedding"]),
        ("heads", parts.heads, known["heads"]),
        ("mlp", parts.mlp, known["mlp"]),
        ("bias", parts.bias[:1], bias[None]),
        ("tokens", parts.tokens[:8], known["attention_first8"]),
    ):
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-5 * np.abs(expected).max(), err_msg=name)
    total = parts.heads.sum(1) + parts.mlp + parts.bias
    assert float((total - parts.embedding).norm() / parts.embedding.norm()) < 1e-5
    classes = torch.from_numpy(given["classes"])
    maps = (parts.tokens[:8] @ classes.T).permute(0, 2, 3, 1).unflatten(-1, (4, 4))  # [image, head, class, row, col]
    np.testing.assert_allclose(maps.numpy(), known["maps_first8"], atol=1e-5 * np.abs(known["maps_first8"]).max())
    moments = Moments.of(parts.heads[:, None])  # one layer
    pool = torch.from_numpy(given["pool"])
    with pytest.warns(RankWarning):  # the official run searches all 96 directions
        span = textspan(moments, pool, 16, 96)
    # A head has 24 directions, the official run searches 96. Why later picks differ is open: rounding, or something of ours.
    first = [span.indices[0, head, 0].item() for head in range(4)]
    assert first == known["textspan_picks"][:, 0].tolist()
    assert span.indices[0, 1].tolist()[:6] == known["textspan_picks"][1].tolist()[:6]
