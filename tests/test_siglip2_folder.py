"""`clip-anatomy explain photo.jpg --text … --model hf:FOLDER` on SigLIP 2 as transformers saves it, of a fixed size and of any."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from PIL import Image
from tiny_transformers import TEXT, tiny_transformers

from clip_anatomy.cli.main import main

pytestmark = pytest.mark.usefixtures("one_thread")
LETTERS = "abcdefghijklmnopqrstuvwxyz "


def trained_tokenizer() -> Any:
    """A byte-pair tokenizer of 60 pieces with the ends and the padding that SigLIP 2's has."""
    own = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    own.normalizer = tokenizers.normalizers.Lowercase()
    own.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    special = ["<bos>", "<pad>", "<unk>", "<eos>"]
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=58, special_tokens=special, initial_alphabet=list(LETTERS))
    own.train_from_iterator(["a photo of a dog", "a red bird in the sky"] * 20, trainer)
    own.post_processor = tokenizers.processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 3)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=own, unk_token="<unk>", pad_token="<pad>", eos_token="<eos>", padding_side="right"
    )


def saved(naflex: bool, place: Path) -> tuple[Any, Any]:
    """Save a model, its processor and a tokenizer as transformers does."""
    model = tiny_transformers("Siglip2Model" if naflex else "SiglipModel")
    model.logit_scale.data.fill_(1.5)
    model.logit_bias.data.fill_(-2.0)
    processor: Any = (
        transformers.Siglip2ImageProcessor(patch_size=8, max_num_patches=16)
        if naflex
        else transformers.SiglipImageProcessor(size={"height": 32, "width": 32})
    )
    for part in (model, processor, trained_tokenizer()):
        part.save_pretrained(place)
    return model, processor


@pytest.mark.parametrize("naflex", [False, True])
def test_explain_a_photo_from_a_folder_with_sigmoid_scores(
    naflex: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, processor = saved(naflex, tmp_path / "model")
    # Of the model's own size, so that no filter rounds a level: filters are compared in the proof of pixels.
    levels = np.random.default_rng(0).integers(0, 256, (*((16, 48) if naflex else (32, 32)), 3), dtype=np.uint8)
    Image.fromarray(levels).save(tmp_path / "photo.png")
    texts = ["a photo of a dog", "a red bird"]
    monkeypatch.chdir(tmp_path)
    words = (word for text in texts for word in ("--text", text))
    assert main(["explain", "photo.png", "--model", "hf:model", "--json", *words]) == 0
    found = json.loads(capsys.readouterr().out)["images"][0]
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")  # of SigLIP 2 a class of its own
    padded = theirs(texts, padding="max_length", max_length=TEXT["max_position_embeddings"], return_tensors="pt")
    given = processor(Image.fromarray(levels), return_tensors="pt")
    with torch.no_grad():
        logits = model(input_ids=padded["input_ids"], **given).logits_per_image[0]
    for one, logit in zip(found["texts"], logits.sigmoid().tolist(), strict=True):
        assert one["probability"] == pytest.approx(logit, abs=1e-5)
        assert abs(one["residue"]) < 1e-5
        assert np.shape(one["patches"]) == ((2, 6) if naflex else (4, 4))


@pytest.fixture(scope="module", params=[False, True], ids=["fixed", "naflex"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model, photos of several shapes beside it, and a store of them."""
    place = tmp_path_factory.mktemp("naflex" if request.param else "fixed")
    saved(request.param, place / "model")
    (place / "photos").mkdir()
    random = np.random.default_rng(1)
    for at in range(12):
        high, wide = ((32, 32), (24, 48), (50, 30))[at % 3]
        Image.fromarray(random.integers(0, 256, (high, wide, 3), dtype=np.uint8)).save(
            place / "photos" / f"{at:02}.png"
        )
    assert (
        main(["index", f"{place}/photos", f"{place}/store", "--model", f"hf:{place}/model", "--keep", "heads,mlps"])
        == 0
    )
    return place


@pytest.mark.parametrize(
    "command",
    [
        "check --model hf:model",
        "heatmap photos/00.png photos/01.png --text dog --text bird --model hf:model",
        "heatmap photos/01.png --text dog --text bird --model hf:model --method surgery",
        "heatmap photos/01.png --text dog --method legrad --model hf:model",
        "segment photos/01.png photos/02.png --text dog --text bird --model hf:model",
        "pairs photos/01.png --text dog --model hf:model",
        "pairs photos/01.png photos/02.png --model hf:model",
        "refer photos/01.png dog --model hf:model",
        "mutual photos/01.png --classes dog,bird --descriptors details.txt --model hf:model",
        "search store photos/01.png --model hf:model",
        "search store dog --model hf:model",
        "atlas store --pool details.txt",
        "concepts photos/01.png --pool details.txt --model hf:model",
        "verify store",
    ],
)
def test_every_verb_runs_on_such_a_folder(
    place: Path, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    details = ["red", "blue", "green", "big", "small", "sky", "sea", "old", "new", "far", "near", "wet", "dry", "hot", "cold", "wood", "sand"]  # fmt: skip
    Path("details.txt").write_text("\n".join(details))
    out = [] if command.split(maxsplit=1)[0] in ("check", "verify") else ["--out", str(tmp_path / "out")]
    assert main([*command.split(), *out]) == 0
    said = capsys.readouterr()
    assert not re.search(r"\b(nan|inf)\b", said.out)
    assert "Traceback" not in said.err
