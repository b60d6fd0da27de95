"""SigLIP's attention pool split at itself, equal to the official code's outputs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from pool_heads import pool_parts
from safetensors.torch import load_file

from clip_anatomy.loading.host import BorrowedTensors, tensors_of
from clip_anatomy.loading.transformers_towers import image_tower
from clip_anatomy.naming.textspan import RankWarning, textspan
from clip_anatomy.split.moments import Moments


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
    first = [span.indices[0, head, 0].item() for head in range(4)]
    assert first == known["textspan_picks"][:, 0].tolist()
    assert span.indices[0, 1].tolist()[:6] == known["textspan_picks"][1].tolist()[:6]


def published_picks(data: Any, texts: Any, picks: int, rank: int) -> list[int]:
    """TextSpan as published, on contributions [image, embed] themselves, in double precision."""
    data, texts = data.astype(np.float64), texts.astype(np.float64)
    frame = np.linalg.svd(data, full_matrices=False)[2][:rank]
    texts, data, found = texts @ frame.T @ frame, data - data.mean(0), []
    for _ in range(picks):
        chosen = texts[int((data @ texts.T).std(0).argmax())]
        found.append(int((data @ texts.T).std(0).argmax()))
        direction = chosen / (chosen @ chosen)
        data, texts = data - np.outer(data @ direction, chosen), texts - np.outer(texts @ direction, chosen)
    return found


def test_picks_of_the_official_run_hang_on_rounding_from_the_second_on(shared: Path) -> None:
    """A head has 24 directions; 64 images give the official run 64, of which 40 are the rounding of float32.

    The published algorithm gives the official picks on the official numbers to the last bit, other ones when those numbers are
    rounded once more, and ours when it searches the 24 directions that there are.
    """
    oracle = shared / "oracles" / "siglip_pool"
    known, pool = np.load(oracle / "outputs.npz"), np.load(oracle / "inputs.npz")["pool"]
    heads, official = known["heads"], known["textspan_picks"].tolist()
    assert [published_picks(heads[:, h], pool, 16, 96) for h in range(4)] == official
    rounded = (heads / np.float32(3)) * np.float32(3)  # the same numbers but for the last bit of some
    assert np.abs(rounded - heads).max() < 2e-7 * np.abs(heads).max()
    moved = [published_picks(rounded[:, h], pool, 16, 96) for h in range(4)]
    assert [picks[0] for picks in moved] == [picks[0] for picks in official]
    assert all(one != other for one, other in zip(moved, official, strict=True))
    span = textspan(Moments.of(torch.from_numpy(heads)[:, None]), torch.from_numpy(pool), 16)
    assert span.rank.tolist() == [[24] * 4]
    for h in range(4):
        expected = published_picks(heads[:, h], pool, 16, 24)
        assert span.indices[0, h].tolist() == expected
        assert published_picks(rounded[:, h], pool, 16, 24) == expected  # rounding moves nothing here
