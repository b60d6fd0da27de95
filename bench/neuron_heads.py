"""What neurons × heads of a CLIP-ResNet take, and what they say of a small one that knows the demo world.

    python bench/neuron_heads.py                         # RN50x16, 24 random pictures; says what 1,000 would take
    python bench/neuron_heads.py --model RN50 --images 64
    python bench/neuron_heads.py --learn 400 --figure docs/neuron-heads.png

Prints one line of JSON: `held` is what stays in memory for 1,000 pictures, `peak_growth` how much memory the process took above the
opened model while these pictures were done (workspace of the forward included), `stored_as_released` what the released code writes.

With `--learn` a CLIP-ResNet of four bottlenecks and 512 neurons is trained for so many steps on 64 pictures of the demo world each, toward the class
texts of the bundled model's text tower, which it keeps. Printed: its accuracies on unseen pictures, and for the strongest pairs how often
their first text about a colour, shape or background is true of the three pictures in which they write most, beside how often it is of any picture.
"""

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

import clip_anatomy as ca
from clip_anatomy.data.world.accuracy import classifier, pixels, target
from clip_anatomy.data.world.attribute_names import ATTRIBUTES
from clip_anatomy.data.world.scenes import World
from clip_anatomy.loading.demo import HERE
from clip_anatomy.loading.word_tokenizer import WordTokenizer
from clip_anatomy.report.figures import png

SIDE, BATCH, ASKED = 128, 64, ("colour", "shape", "background")
SMALL: dict[str, Any] = {"image_size": SIDE, "layers": [1, 1, 1, 1], "width": 16, "head_width": 32, "patch_size": None}


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def learnt(steps: int) -> Any:
    """Train a small CLIP-ResNet whose texts are those of the bundled model."""
    import open_clip

    demo = ca.load("demo")
    config = json.loads((HERE / "open_clip_config.json").read_text())["model_cfg"]
    torch.manual_seed(0)
    make: Any = open_clip.CLIP
    model: Any = make(config["embed_dim"], SMALL, config["text_cfg"])
    known = load_file(HERE / "open_clip_model.safetensors")
    model.load_state_dict(
        {name: x.float() for name, x in known.items() if not name.startswith("visual.")}, strict=False
    )
    texts = {name: classifier(demo.encode_text, name) for name in ATTRIBUTES}
    world, parameters = World(split="train", size=SIDE), model.visual.parameters()
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.01)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    model.train()
    for step in range(steps):
        scenes = world.batch(np.arange(step * BATCH, (step + 1) * BATCH))
        unit = F.normalize(model.visual(pixels(scenes.images)), dim=-1)
        losses = [
            F.cross_entropy(30 * unit @ rows.T, torch.from_numpy(target(scenes.facts, name)).long(), ignore_index=-1)
            for name, rows in texts.items()
        ]
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        optimizer.step()
        rate.step()
    return model.eval()


def said_by_pairs(steps: int, figure: Path | None) -> dict[str, Any]:
    """Rank the pairs of the small ResNet, in words, on unseen pictures of one object without a digit."""
    clip = ca.load(learnt(steps), tokenizer=WordTokenizer.bundled())
    world = World(split="test", size=SIDE, length=2000)
    facts = world.facts(np.arange(2000))
    scenes = world.batch(np.flatnonzero((facts.count == 1) & (facts.digit == 0))[:200])
    with torch.no_grad():
        unit = F.normalize(clip.encode_image(pixels(scenes.images)), dim=-1)
    right = {
        name: float(((unit @ classifier(clip.encode_text, name).T).argmax(1).numpy() == target(scenes.facts, name)).mean())
        for name in ASKED
    }  # fmt: skip
    found = ca.paths(clip, [Image.fromarray(one) for one in scenes.images], pool="world", top=12)
    labels = scenes.labels()
    true, chance = [], []
    for row, one in enumerate(found.sources):
        known = [
            (kind, value) for text, _ in one.words for kind in ASKED for value in set(labels[kind]) if value in text
        ]
        if known:
            kind, value = known[0]
            true += [labels[kind][at] == value for at in found.top_images(row)]
            chance.append(np.mean([one == value for one in labels[kind]]))
    print(found.summary())
    if figure is not None:
        figure.write_bytes(png(found.figure()))
    return {
        "steps": steps,
        "pictures": len(scenes.images),
        "accuracy": {name: round(share, 3) for name, share in right.items()},
        "pairs": found.ranked,
        "told": len(chance),
        "true_of_their_pictures": round(float(np.mean(true)), 3),
        "chance": round(float(np.mean(chance)), 3),
    }


def taken(name: str, images: int, batch: int) -> dict[str, Any]:
    """Measure memory and time on random pictures and random weights."""
    import open_clip

    torch.manual_seed(0)
    clip = ca.load(open_clip.create_model(name).eval())
    random = torch.randn(images, 3, *clip.preprocess.size)
    clip.encode_image(random[:batch])  # the forward's own workspace is there before
    before, start = peak(), time.perf_counter()
    found = ca.neuron_heads(clip, random, batch=batch)
    seconds = time.perf_counter() - start
    grown = peak() - before
    start = time.perf_counter()
    clip.encode_image(random[: batch * 4])
    forward = (time.perf_counter() - start) / (batch * 4)
    _, heads, neurons = found.scalars.shape
    each = (found.scalars.nbytes + found.embedding.nbytes) / images
    return {
        "model": name,
        "images": images,
        "pairs": heads * neurons,
        "held_megabytes_of_1000": round(1000 * each / 1e6),
        "peak_growth_megabytes": round(grown / 1e6),
        "stored_as_released_gigabytes_of_1000": round(1000 * heads * neurons * clip.vision.embed * 4 / 1e9),
        "seconds_a_picture": round(seconds / images, 3),
        "forward_alone": round(forward, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="RN50x16")
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--learn", type=int, help="steps of training the small one")
    parser.add_argument("--figure", type=Path, help="file of its pairs as a picture")
    asked = parser.parse_args()
    figures = said_by_pairs(asked.learn, asked.figure) if asked.learn else taken(asked.model, asked.images, asked.batch)
    print(json.dumps({"bench": "neuron_heads", **figures}))


if __name__ == "__main__":
    main()
