"""Put a checkpoint into the package: `python -m training.export` writes weights, parity record, examples and curves.

The parity record holds what open_clip itself computes with the shipped weights for inputs made from integers, so that
anyone can repeat the proof without open_clip: pixel (channel c, row i, column j) of the image is
((37 c + 11 i + 23 j + i j) mod 101) / 50 − 1, already in the model's normalised range, and the token row opens with
the start id, holds 258 + 13 k for k = 0…9, and closes with the end id.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from clip_anatomy.data.world import SceneAttributes, World
from clip_anatomy.data.world.attribute_names import COLOURS, COUNTS, SHAPES, TEXTURES
from clip_anatomy.data.world.captions import article, plural, setting
from clip_anatomy.loading.word_tokenizer import WordTokenizer
from training.train import CONFIG, HERE, build

DEMO = CONFIG.parent
CONTEXT = 32


def parity_inputs(tokenizer: WordTokenizer) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the image [1, 3, 64, 64] and the token row [1, context] of the parity record."""
    c, i, j = torch.meshgrid(torch.arange(3), torch.arange(64), torch.arange(64), indexing="ij")
    image = ((37 * c + 11 * i + 23 * j + i * j) % 101).float() / 50 - 1
    tokens = torch.zeros(1, CONTEXT, dtype=torch.long)
    row = [tokenizer.start, *(258 + 13 * k for k in range(10)), tokenizer.end]
    tokens[0, : len(row)] = torch.tensor(row)
    return image[None], tokens


def shipped(folder: Path = DEMO) -> Any:
    """Load the shipped weights into open_clip's own class, strictly, in float32."""
    model = build(folder / "open_clip_config.json")
    state = load_file(folder / "open_clip_model.safetensors")
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, strict=True)
    return model.eval()


def write_weights(checkpoint: Path, folder: Path) -> None:
    """Store the model part of a checkpoint in half precision."""
    state = {k.removeprefix("model."): v for k, v in load_file(checkpoint).items() if k.startswith("model.")}
    half = {k: v.half().contiguous() for k, v in state.items()}
    save_file(half, folder / "part", {"format": "pt"})
    _publish(folder / "open_clip_model.safetensors")


def _publish(path: Path) -> None:
    """Give a finished part its name, readable by everyone."""
    part = path.with_name("part")
    part.chmod(0o644)
    part.replace(path)


@torch.no_grad()
def write_parity(folder: Path) -> None:
    """Record what open_clip computes with the shipped weights."""
    model = shipped(folder)
    image, tokens = parity_inputs(WordTokenizer.bundled())
    record = {
        "image": image,
        "image_embed": model.encode_image(image),
        "tokens": tokens,
        "text_embed": model.encode_text(tokens),
    }
    save_file({k: v.contiguous() for k, v in record.items()}, folder / "part")
    _publish(folder / "parity.safetensors")


def _whole(facts: SceneAttributes) -> str:
    """Describe all of a picture's objects and its background in one plain sentence."""
    names = [
        f"{COLOURS[c]} {TEXTURES[t]} {SHAPES[s]}"
        for s, c, t in zip(facts.shape[0], facts.colour[0], facts.texture[0], strict=True)
        if s >= 0
    ]
    one = int(facts.count[0]) == 1 or bool(facts.mixed[0])
    said = " and ".join(map(article, names)) if one else f"{COUNTS[facts.count[0] - 1]} {plural(names[0])}"
    return f"{said} {setting(int(facts.background[0]))}"


def write_examples(folder: Path, wanted: int = 6) -> None:
    """Write some unseen pictures and their captions, chosen to differ: one per row of the list below."""
    out = folder / "examples"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    world = World(split="test", length=20_000)
    facts = world.facts(np.arange(len(world)))
    single, plain = facts.count == 1, facts.digit == 0
    wishes = {
        "striped_circle": single
        & (facts.shape[:, 0] == 4)
        & plain
        & (facts.group < 0)
        & (facts.size == 1)
        & (facts.texture[:, 0] == 1),
        "bird_at_home": single & plain & (facts.group == 0) & (facts.size == 1) & (facts.likeness < 0.1),
        "bird_on_water": single & plain & (facts.group == 1) & (facts.size == 1) & (facts.likeness < 0.35),
        "three": (facts.count == 3) & ~facts.mixed & plain & (facts.group < 0),
        "false_digit": (facts.count == 2) & ~facts.mixed & (facts.digit == 4),
        "two_kinds": facts.mixed & plain & (facts.size == 1),
    }
    captions = {}
    for name, mask in list(wishes.items())[:wanted]:
        scenes = world.batch(np.flatnonzero(mask)[:1])
        words = {key: values[0] for key, values in scenes.labels().items() if values[0]}
        Image.fromarray(scenes.images[0]).save(out / f"{name}.png")
        captions[f"{name}.png"] = {"text": _whole(scenes.facts), "captions": scenes.captions(3)[0], **words}
    (out / "captions.json").write_text(json.dumps(captions, indent=1) + "\n", encoding="utf-8")


def write_curves(log: Path, folder: Path) -> None:
    """Keep the log and draw its curves."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), dpi=110, layout="constrained")
    for name in ("attributes", "contrastive"):
        rows = [line for line in lines if line.get(name)]
        left.plot([line["step"] for line in rows], [line[name] for line in rows], label=name)
    left.set(xlabel="step", title="loss")
    left.legend(frameon=False)
    rows = [line for line in lines if "accuracy" in line]
    for name in ("shape", "colour", "texture", "background", "position", "count", "count with a false digit"):
        right.plot([line["step"] for line in rows], [100 * line["accuracy"][name] for line in rows], label=name)
    right.plot(
        [line["step"] for line in rows], [100 * line["worst_group"] for line in rows], "k--", label="worst group"
    )
    right.set(xlabel="step", title="zero-shot accuracy, validation pictures (%)", ylim=(0, 101))
    right.legend(frameon=False, fontsize=7)
    figure.savefig(folder / "curves.png")
    kept = folder / "log.jsonl"
    if log.resolve() != kept.resolve():
        shutil.copyfile(log, kept)


def main() -> None:
    """Export the last checkpoint of a run."""
    parser = argparse.ArgumentParser(description="Put a checkpoint into the package.")
    parser.add_argument("--run", type=Path, default=HERE / "run")
    run: Path = parser.parse_args().run
    write_weights(run / "checkpoint.safetensors", DEMO)
    write_parity(DEMO)
    write_examples(DEMO)
    write_curves(run / "log.jsonl", HERE)
    size = (DEMO / "open_clip_model.safetensors").stat().st_size
    print(f"wrote {DEMO.name}/: weights {size / 1e6:.1f} MB, parity record, examples; curves beside the training log")


if __name__ == "__main__":
    main()
