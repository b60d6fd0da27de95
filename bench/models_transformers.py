"""Which classes of transformers open, and how far down each is split: writes their section of docs/models.md.

    python bench/models_transformers.py --out docs/models.md

Small random instances of every class: proof against the class's own code, sums of the parts, what `check` calls the split. And of
every class that was tried and does not open, its one sentence.
"""

import argparse
import logging
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

import clip_anatomy as ca
from clip_anatomy.errors import ClipAnatomyError

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from tiny_transformers import CONFIGS, TEXT, VISION, tiny_transformers

BEGIN, END = "<!-- transformers: begin -->", "<!-- transformers: end -->"
PAGE = """{begin}
## transformers

{opened} classes of transformers open, live or from a folder that `save_pretrained` made, by versions 4.56 to {version}: whole models, and
towers alone. An image model alone takes text embeddings where others take words; what needs the tower that is missing says so. SigLIP 2
of any size (NaFlex) looks at each picture in its own aspect ratio. This section is made by `python bench/models_transformers.py --out
docs/models.md`, on small random instances of each class: proof is the larger of both towers' relative differences from the class's own
code in double precision, sum the parts against its own embedding.

- ViTs without text (`ViTModel`, DINOv2, DINOv3) give the class token behind the last norm. The pooler of a `ViTModel` is a tanh, which no
  sum goes through: it is left out.
- BERT-like text towers (ChineseCLIP, AltCLIP, ALIGN, BLIP) have a norm behind every sum of their stream. All are frozen, and what a layer
  writes passes those of the later layers on its way, so every head and every MLP has its part. Padding is masked as their tokenizers do.
- timm's ConvNeXt and Swin open alone too, split where their places are averaged; parallel blocks of several attentions
  (`ParallelThingsBlock`) leave one part.
- Sharded folders, merged adapters (PEFT) and accelerate's hooks open as they are; adapters that are not merged, and weights that accelerate
  keeps elsewhere, say what to type. Weights in 8 or 4 bits (torchao, bitsandbytes, torch's dynamic quantisation) are dequantised for the
  split, and `check` says so; the proof then compares in the model's own precision, to 5 %, since such layers may round what they read.
- BLIP's image and text embeddings are those of `use_itm_head=False`; the head that matches pairs reads both at once and is left out.

| class | image tower | text tower | proof | sum |
| --- | --- | --- | --- | --- |
{rows}

What does not open as it is, and what it says:

| what | says |
| --- | --- |
{refused}
{end}"""


def row(name: str) -> list[str]:
    """One class: the split of its towers, proof and sums."""
    found = ca.check(clip := ca.load(tiny_transformers(name)))
    assert clip.proof is not None
    sums = [one.error for one in found.claims if one.claim.startswith("parts sum")]
    return [
        f"`{name.replace(', ', '`, ')}{'' if ',' in name else '`'}",
        *found.split,
        f"{clip.proof.largest:.0e}",
        f"{max(sums):.0e}",
    ]


def llava() -> Any:
    """A LLaVA around a CLIP's image tower."""
    text = {k: v for k, v in TEXT.items() if k != "hidden_act"}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION),
        text_config=transformers.LlamaConfig(**text, num_key_value_heads=2),
        image_token_index=5,
    )
    return transformers.LlavaForConditionalGeneration(config).eval()


def classifier() -> Any:
    config = transformers.Dinov2Config(**{k: v for k, v in VISION.items() if k != "intermediate_size"}, num_labels=3)
    return transformers.Dinov2ForImageClassification(config).eval()


def blip() -> Any:
    towers = {"text_config": {**TEXT, "encoder_hidden_size": 48}, "vision_config": dict(VISION)}
    return transformers.BlipForConditionalGeneration(transformers.BlipConfig(**towers)).eval()


def blip_model() -> Any:
    towers = {"text_config": {**TEXT, "encoder_hidden_size": 48}, "vision_config": dict(VISION)}
    return transformers.BlipModel(transformers.BlipConfig(**towers)).eval()


def segmenter() -> Any:
    towers = {"text_config": dict(TEXT), "vision_config": dict(VISION)}
    return transformers.CLIPSegForImageSegmentation(transformers.CLIPSegConfig(**towers, extract_layers=[0])).eval()


REFUSED: dict[str, Callable[[], Any]] = {
    "a live `LlavaForConditionalGeneration`": llava,
    "a live `Dinov2ForImageClassification`": classifier,
    "a live `CLIPSegForImageSegmentation`": segmenter,
    "a live `BlipForConditionalGeneration`": blip,
    "a live `BlipModel`": blip_model,
}


def sentence(action: Callable[[], Any]) -> str:
    try:
        action()
    except ClipAnatomyError as error:
        return str(error)
    return "opens"


def main() -> None:
    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rows = [row(name) for name in CONFIGS]
    refused = [[what, sentence(lambda make=make: ca.load(make()))] for what, make in REFUSED.items()]
    with tempfile.TemporaryDirectory() as folder:
        llava().save_pretrained(folder)
        said = sentence(lambda: ca.load(folder)).replace(folder, "FOLDER")
        refused.append(["a folder of a LLaVA", said])
    lines = ["\n".join(f"| {' | '.join(one)} |" for one in table) for table in (rows, refused)]
    classes = len({name.partition(",")[0] for name in CONFIGS})
    page = PAGE.format(
        begin=BEGIN, end=END, opened=classes, version=transformers.__version__, rows=lines[0], refused=lines[1]
    )
    print(page)
    if given.out is not None:
        before = given.out.read_text(encoding="utf-8")
        head, _, rest = before.partition(BEGIN)
        given.out.write_text(f"{head.rstrip()}\n\n{page}\n{rest.partition(END)[2].lstrip()}", encoding="utf-8")


if __name__ == "__main__":
    main()
