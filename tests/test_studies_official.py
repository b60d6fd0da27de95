"""Studies of a store agree with the official code on its own model and pictures."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import clip_anatomy as ca
from clip_anatomy.edits.selection import Selection
from clip_anatomy.errors import StoreError
from clip_anatomy.split.basis import basis_of, coordinates_of
from clip_anatomy.split.source_tokens import token_parts
from clip_anatomy.store.manifest import Manifest
from clip_anatomy.store.store import Store
from clip_anatomy.store.writer import Writer
from clip_anatomy.studies.ablated_predictions import predictions
from clip_anatomy.studies.ablation_study import study
from clip_anatomy.studies.baseline import baseline_of
from clip_anatomy.studies.token_parts import TokenParts
from clip_anatomy.studies.zero_shot_task import ablation_task

pytestmark = pytest.mark.usefixtures("one_thread")


def test_accuracies_of_the_official_code_from_a_store(shared: Path, tmp_path: Path) -> None:
    import open_clip

    place = shared / "oracles" / "vit-a"
    config = json.loads((place / "oracle-vit.json").read_text())
    model = open_clip.CLIP(
        **{k: v for k, v in config.items() if k in ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu")}
    )
    model.load_state_dict({k: v.float() for k, v in load_file(place / "weights.safetensors").items()})
    clip, inputs = ca.load(model.eval(), parity=False), np.load(place / "inputs.npz")
    expected = json.loads((place / "results.json").read_text())["ablation_accuracy_percent"]
    manifest = Manifest.of(clip, tuple(range(8)), ("heads", "mlps"), "official")
    basis = basis_of(clip.image_tower, "official")
    row = {
        "path": None,
        "size": 1,
        "row": 1,
        "col": 1,
        "group": "",
        "captions": "[]",
        "meta": "{}",
        "error": "",
        "source": 1,
    }
    images = torch.from_numpy(inputs["images"]).float()
    own: list[torch.Tensor] = []
    with Writer.open(tmp_path / "store", manifest, basis) as writer:
        for first in range(0, len(images), 64):
            parts = ca.decompose(clip, images[first : first + 64], "official")
            length = parts.embedding.norm(dim=-1)
            own.append(token_parts(parts, {layer: [0] for layer in range(8)}).sum(2) / length[:, None, None])
            heads = (
                coordinates_of(basis, parts.source.network, parts.trace).permute(1, 2, 0, 3).numpy().astype(np.float16)
            )
            mlps = (parts.mlps / length[:, None, None]).permute(1, 0, 2).numpy().astype(np.float16)
            unit = (parts.embedding / length[:, None]).numpy().astype(np.float16)
            ids = range(first, first + len(length))
            entries = [
                {**row, "id": f"{at}", "digest": f"{at:032x}", "label": f"{inputs['labels'][at]}", "status": "done"}
                for at in ids
            ]
            writer.commit(entries, {"heads": [heads], "mlps": [mlps], "embedding": [unit], "norm": [length.numpy()]})
        writer.tidy(end=True)
    store = Store.open(tmp_path / "store")
    classes = torch.from_numpy(inputs["classifier"]).float()
    task = ablation_task(store, lambda: clip, classes=[str(at) for at in range(10)], texts=classes)

    layers = study(store, "layers", task=task)
    assert 100 * layers.whole.accuracy == pytest.approx(expected["base"])
    assert [100 * one.accuracy for one in layers.effects] == pytest.approx(expected["attention_layers_cumulative"])
    mlps = {one.description: 100 * one.accuracy for one in study(store, "mlps", task=task).effects}
    assert mlps["all MLPs and the input embedding"] == pytest.approx(expected["mlps"])  # its first "MLP" is the start
    extra = {(0,): TokenParts((0,), tuple(range(8)), torch.cat(own).numpy())}
    every = Selection(class_to_class=tuple(range(8)))
    picks = predictions(store, task.texts, [every], baseline_of(store, every, tokens=extra), tokens=extra)
    assert 100 * float((picks[0] == task.labels).double().mean()) == pytest.approx(expected["cls_to_cls"])
    with pytest.raises(StoreError, match="handed over in memory"):
        study(store, "class-to-class", task=task, clip=clip)
