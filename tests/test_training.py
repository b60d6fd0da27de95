"""The training recipe: its fast forward is open_clip's, its loss is what it says, a resumed run equals an uninterrupted one."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

pytest.importorskip("open_clip")
sys.path.insert(0, str(Path(__file__).parents[1]))

from training import export
from training.data import Batches
from training.towers import class_token, text_embedding
from training.train import arguments, build, contrastive_loss, rate, train

from clip_anatomy.data.world import World, truth
from clip_anatomy.loading.word_tokenizer import WordTokenizer

TINY = [
    "--images",
    "6",
    "--stage2",
    "1",
    "--stage3",
    "2",
    "--release",
    "3",
    "--warmup",
    "2",
    "--every",
    "2",
    "--measure",
    "4",
    "--pictures",
    "40",
    "--workers",
    "0",
    "--threads",
    "1",
    "--no-bfloat16",
]


def test_the_training_forward_is_open_clips() -> None:
    torch.manual_seed(0)
    model = build().eval()
    images = torch.randn(3, 3, 64, 64)
    tokens = WordTokenizer.bundled()(["a red circle", "three striped fish in the water", "zebra"])
    with torch.no_grad():
        assert torch.allclose(class_token(model, images) @ model.visual.proj, model.encode_image(images), atol=1e-5)
        assert torch.allclose(text_embedding(model, tokens[:, :16]), model.encode_text(tokens), atol=1e-5)


def test_the_contrastive_loss_is_clips_own_for_one_right_answer_and_a_loop_for_several() -> None:
    torch.manual_seed(0)
    image, text, scale = torch.randn(5, 8), torch.randn(5, 8), torch.tensor(7.0)
    logits = scale * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
    right = torch.arange(5)
    plain = (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2
    assert contrastive_loss(image, text, torch.eye(5, dtype=torch.bool), scale) == pytest.approx(plain.item(), rel=1e-5)
    true = torch.eye(5, dtype=torch.bool) | (torch.rand(5, 5) < 0.3)
    total = 0.0
    for table, table_logits in ((true, logits), (true.T, logits.T)):
        for row in range(5):
            answers = table[row].nonzero()[:, 0]
            total += sum(-table_logits[row].log_softmax(0)[a].item() for a in answers) / len(answers) / 10
    assert contrastive_loss(image, text, true, scale).item() == pytest.approx(total, rel=1e-5)


def test_a_step_holds_its_pictures_and_the_truth_of_its_captions() -> None:
    batch = Batches(0, 16, 2, 0, 10).step(3)
    scenes = World(split="train").batch(np.arange(48, 64))
    assert np.array_equal(batch.images.numpy(), scenes.images)
    said = [claim for row in scenes.claims(2) for _, claim in row]
    assert np.array_equal(batch.true.numpy(), truth(scenes.facts, said))
    assert batch.true[torch.arange(16).repeat_interleave(2), torch.arange(32)].all()
    assert batch.tokens.shape[1] % 8 == 0
    assert set(batch.labels["position"][batch.labels["count"] != 0].tolist()) == {-1}


def test_the_rate_warms_up_stays_and_falls_to_zero() -> None:
    args = arguments(["--steps", "100", "--warmup", "10", "--fall", "0.4", "--lr", "1"])
    rates = [rate(step, args) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10:60] == [1.0] * 50
    assert rates[80] == pytest.approx(0.5)
    assert rates[-1] == pytest.approx(1 / 40)


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    train(arguments([*TINY, "--run", str(tmp_path / "whole"), "--steps", "4", "--fall", "0"]))
    train(arguments([*TINY, "--run", str(tmp_path / "parts"), "--steps", "2", "--fall", "0"]))
    train(arguments([*TINY, "--run", str(tmp_path / "parts"), "--steps", "4", "--fall", "0"]))
    whole, parts = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, parts[name]), name
    lines = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert set(lines[-1]["accuracy"]) >= {"shape", "position", "count with a false digit"}
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "open_clip_config.json").write_bytes((export.DEMO / "open_clip_config.json").read_bytes())
    export.write_weights(tmp_path / "whole" / "checkpoint.safetensors", folder)
    export.write_parity(folder)
    model, record = export.shipped(folder), load_file(folder / "parity.safetensors")
    with torch.no_grad():
        assert torch.allclose(model.encode_image(record["image"]), record["image_embed"], atol=1e-6)
        assert torch.allclose(model.encode_text(record["tokens"]), record["text_embed"], atol=1e-6)
    export.write_curves(tmp_path / "whole" / "log.jsonl", folder)
    assert (folder / "curves.png").stat().st_size > 1000


def test_the_parity_inputs_follow_their_formula() -> None:
    words = WordTokenizer.bundled()
    image, tokens = export.parity_inputs(words)
    assert image.shape == (1, 3, 64, 64)
    assert image[0, 2, 5, 7].item() == pytest.approx(((74 + 55 + 161 + 35) % 101) / 50 - 1)
    assert tokens[0, :12].tolist() == [words.start, *range(258, 388, 13), words.end]
