"""What people do with a model, on a SigLIP, a PE-Core and an EVA-02: names, ablation, maps, masks, edits, export, stores, search, repair."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_families import TEXT, family

import clip_anatomy as ca
from clip_anatomy.edits import standalone_encoder
from clip_anatomy.edits.edit import Edit
from clip_anatomy.edits.edited_clip import EditedClip
from clip_anatomy.errors import BadSpec, StoreError
from clip_anatomy.maps.registry import methods_of

FAMILIES = ("siglip", "pe", "eva02")
UNLIKE = {"proxyclip": "affinity", "grad_eclip": "class token"}  # what they need, or have no meaning without


@pytest.fixture(scope="module", params=FAMILIES)
def clip(request: Any) -> Any:
    return ca.load(family(request.param), tokenizer=tokenizer)


def tokenizer(texts: list[str]) -> torch.Tensor:
    """Give each text ids of its own, the highest where it ends."""
    ids = torch.zeros(len(texts), TEXT["context_length"], dtype=torch.long)
    for row, text in zip(ids, texts, strict=True):
        row[:4] = torch.tensor([58, 1 + sum(map(ord, text)) % 50, 1 + len(text) % 50, 59])
    return ids


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    """48 pictures of two classes, three quarters of each in a place of its own."""
    root, draw = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    rows = ["path,label,group"]
    for at in range(48):
        label, odd = at % 2, at % 8 >= 6
        levels = draw.integers(0, 120, (32, 32, 3), np.uint8)
        levels[:, :16, label] += 120
        levels[16:, :, 2] += 90 * (label ^ odd)
        Image.fromarray(levels).save(root / f"{at:02d}.png")
        rows.append(f"{at:02d}.png,{['left', 'right'][label]},{['land', 'water'][label ^ odd]}")
    (root / "labels.csv").write_text("\n".join(rows))
    return root


@pytest.fixture(scope="module")
def store(clip: Any, folder: Path, tmp_path_factory: Any) -> Any:
    path = tmp_path_factory.mktemp("stores") / "store"
    ca.index(clip, folder, path, labels=folder / "labels.csv", keep="heads,mlps")
    return ca.Store.open(path)


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


@pytest.mark.parametrize("parts", ["0.1,1.2", "layer=1", "mlp=0", "last=1+mlp=all", "input-embedding", "mlp=pool"])
def test_an_edited_encoder_does_what_the_split_says(clip: Any, pixels: torch.Tensor, parts: str) -> None:
    if parts == "mlp=pool" and not clip.vision.pooling:
        with pytest.raises(BadSpec, match=r"no MLP behind an attention pool is here\. Type mlp=0-1"):
            Edit.of(clip, parts, by="zero")
        return
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


@pytest.mark.parametrize("name", ["parallel", "parallel-fused"])
def test_an_encoder_of_parallel_blocks_is_edited_exported_and_opened_again(name: str, tmp_path: Path) -> None:
    clip = ca.load(family(name), tokenizer=tokenizer)
    edit, pixels = Edit.of(clip, "1.0+mlp=0", by="zero"), torch.randn(2, 3, *(16 * n for n in clip.vision.grid))
    expected = ca.replace_parts(clip, pixels, "1.0+mlp=0", by="zero")
    torch.testing.assert_close(EditedClip(clip, edit).encode_image(pixels), expected, atol=1e-5, rtol=1e-4)
    ca.export(edit, model=clip, out=tmp_path / "out")
    found = standalone_encoder.load(tmp_path / "out").encode_image(pixels)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_the_mlp_behind_a_pool_is_named_kept_and_undone(tmp_path: Path, pixels: torch.Tensor) -> None:
    clip = ca.load(family("siglip"))
    means = ca.Means.of(clip, pixels)
    edit = Edit.of(clip, "mlp=all", means)
    assert edit.parts.spec == "mlp=0-1,pool"
    assert edit.parts.description == "MLPs 0-1, pool"
    again = Edit.load(edit.save(tmp_path / "edit.json"))
    assert again.parts == edit.parts
    kept = again.undo("mlp=0-1")
    assert kept.descriptions == ["mlp pool by its mean"]
    parts = ca.decompose(clip, pixels)
    length = parts.embedding.norm(dim=-1, keepdim=True)
    expected = parts.embedding - parts.mlps[:, -1] + length * means.mlps[-1].float()
    torch.testing.assert_close(EditedClip(clip, kept).encode_image(pixels), expected, atol=1e-5, rtol=1e-4)


def test_a_store_holds_what_every_head_and_layer_wrote(clip: Any, store: Any, folder: Path) -> None:
    parts = ca.decompose(clip, [folder / f"{at:02d}.png" for at in range(5)])
    scaled = parts.heads / parts.embedding.norm(dim=-1)[:, None, None, None]
    at = [store.column("path").index(f"{i:02d}.png") for i in range(5)]
    for layer in range(2):
        for head in range(4):
            found = store.heads(layer, head, np.array(at)).float() @ store.basis.rows[layer, head].float()
            torch.testing.assert_close(found, scaled[:, layer, head], atol=2e-3, rtol=1e-2)
    torch.testing.assert_close(store.embeddings(np.array(at)), parts.embedding, atol=1e-4, rtol=1e-4)
    if clip.vision.pooling:
        with pytest.raises(StoreError, match="nothing of the MLP behind this model's attention pool"):
            ca.ablate(store, select=["input-embedding"], by="zero", classes=["left", "right"], model=clip)


def test_an_ablation_of_the_store_counts_what_replaced_parts_change(clip: Any, store: Any, folder: Path) -> None:
    classes, parts = ["left", "right"], "1.1,1.3+mlp=all"
    parts = parts if clip.vision.pooling is None else "1.1,1.3+mlp=0-1"  # a store has nothing of the pool's MLP
    study = ca.ablate(store, select=[parts], by="zero", classes=classes, templates=["{}"], model=clip).studies[0]
    names, labels = store.column("path"), store.column("label")
    pixels, texts = clip.pixels([folder / name for name in names]), clip.encode_text(classes, templates=["{}"])
    right = torch.tensor([classes.index(one) for one in labels])
    for found, embedding in (
        (study.whole.accuracy, clip.encode_image(pixels)),
        (study.effects[0].accuracy, ca.replace_parts(clip, pixels, parts, "zero")),
    ):
        margin = (embedding @ torch.nn.functional.normalize(texts, dim=-1).T).diff(dim=1)[:, 0]
        unsure = float((margin.abs() < 1e-3 * embedding.norm(dim=-1)).float().mean())
        assert abs(found - float(((margin > 0).long() == right).double().mean())) <= unsure + 1e-9


def test_pictures_are_found_by_what_some_heads_wrote(clip: Any, store: Any, folder: Path) -> None:
    names = store.column("path")
    parts = ca.decompose(clip, [folder / name for name in names])
    wrote = (parts.heads / parts.embedding.norm(dim=-1)[:, None, None, None])[:, 1, [0, 2]].flatten(1)
    wrote = torch.nn.functional.normalize(wrote - wrote.mean(0), dim=-1)
    at = names.index("07.png")
    found = ca.search(store, folder / "07.png", heads="1.0,1.2", clip=clip, k=48)
    expected = (wrote @ wrote[at]).numpy()
    assert len(found.hits) == 47
    np.testing.assert_allclose(
        [hit.score for hit in found.hits], expected[[hit.row.index for hit in found.hits]], atol=0.01
    )


def test_masks_of_pictures_of_any_shape(clip: Any, folder: Path) -> None:
    found = ca.segment(clip, [folder / "03.png", Image.new("RGB", (40, 32), "red")], ["a lake", "a dog"])
    assert [labels.shape for labels in found.labels] == [(32, 32), (32, 40)]
    drawn = ca.heatmap(clip, folder / "03.png", ["a lake", "a dog"]).values
    assert drawn.shape == (1, 2, *clip.vision.grid)
    assert (found.labels[0] > 0).any()


def test_a_repair_measures_what_its_edit_does(clip: Any, store: Any) -> None:
    found = ca.repair(store, model=clip, select="1.1+mlp=0", templates="{}", classes=["left", "right"])
    assert found.edit.parts.spec == "1.1+mlp=0"
