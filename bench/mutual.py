"""What `mutual` gets right on the demo world, where it is known what each picture shows.

    python bench/mutual.py                   # 60 unseen pictures of one object, labels are the twelve shapes
    python bench/mutual.py --figure docs/mutual.png    # a bird on water, where birds belong to the sky: as a picture

For both ways of describing parts: `precision`, how many of the named details are true of the picture; `recall`, how many of its
attributes (colour, texture, background, size, position, count, digit) are named by a true one; `named`, attribute by attribute. Beside them
chance: lists of the same lengths drawn at random from the same pool. `place`: details of the object's colour are of the part that covers most of the
object (chance: a random part). `label`: how often the best label is true. Prints tables and one line of JSON.
"""

import argparse
import json
import random
import time
from typing import Any

import numpy as np
import torch
from PIL import Image

import clip_anatomy as ca
from clip_anatomy.data.world.attribute_names import BACKGROUNDS, SHAPES
from clip_anatomy.data.world.scenes import World
from clip_anatomy.evaluation.known_objects import patch_mask
from clip_anatomy.naming.bundled_pools import world_pool
from clip_anatomy.studies.mutual import without_classes

ASKED = ("colour", "texture", "background", "size", "position", "count", "digit")
ALIKE = {
    "centre": ("centre", "middle"), "large": ("large", "big"), "small": ("small", "little"), "solid": ("solid", "plain", "without any pattern"),
    "dotted": ("dotted", "spotted", "with dots"), "striped": ("striped", "with stripes"), "checkered": ("checkered", "checked", "with checks"),
    "one": ("one", "single"), "": ("no number",),
}  # fmt: skip


def is_true(text: str, about: str, facts: dict[str, str]) -> bool:
    """Whether a text of the world's pool about one attribute names its value in a picture."""
    value = facts[about]
    words = ALIKE.get(value, (value, value.replace("top", "upper").replace("bottom", "lower")))
    return any(word in text for word in words)


def measured(texts: list[str], about: dict[str, str], facts: dict[str, str]) -> list[float]:
    true = [is_true(text, about[text], facts) for text in texts]
    named = [any(about[text] == kind and yes for text, yes in zip(texts, true, strict=True)) for kind in ASKED]
    return [float(np.mean(true)), float(np.mean(named)), *map(float, named)]


def draw(path: str) -> None:
    """Draw the first bird of one object that stands on water."""
    world = World(split="test", length=4000)
    facts = world.facts(np.arange(len(world)))
    bird, water = SHAPES.index("bird"), BACKGROUNDS.index("water")
    at = np.flatnonzero((facts.count == 1) & (facts.shape[:, 0] == bird) & (facts.background == water))[:1]
    picture = Image.fromarray(world.batch(at).images[0])
    found = ca.mutual(ca.load("demo"), picture, SHAPES)
    found.figure().savefig(path)
    print(found.summary())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=60)
    parser.add_argument("--figure")
    asked = parser.parse_args()
    if asked.figure:
        draw(asked.figure)
        return
    clip, pool, rng = ca.load("demo"), world_pool(), random.Random(0)
    about = dict(zip(pool.texts, pool.properties, strict=True))
    details = without_classes(pool.texts, SHAPES)
    world = World(seed=7, split="test", length=6 * asked.pictures)
    single = np.flatnonzero(world.facts(np.arange(len(world))).count == 1)[: asked.pictures]
    scenes = world.batch(single)
    words = scenes.labels()
    rows: dict[str, list[list[float]]] = {"split": [], "circle": [], "chance": []}
    place: dict[str, list[float]] = {"split": [], "circle": [], "chance": []}
    seconds, right, significant = dict.fromkeys(rows, 0.0), 0, 0
    for at in range(len(single)):
        facts = {name: values[at] for name, values in words.items()}
        picture, grid = Image.fromarray(scenes.images[at]), (8, 8)
        inside = patch_mask(torch.from_numpy(scenes.masks[at, 0]), grid)
        for how in ("split", "circle"):
            start = time.perf_counter()
            found = ca.mutual(clip, picture, SHAPES, how=how)
            seconds[how] += time.perf_counter() - start
            rows[how].append(measured([one.text for one in found.details], about, facts))
            part = int(found.parts[inside].mode().values) if inside.any() else -1
            colours = [
                one for one in found.details if about[one.text] == "colour" and is_true(one.text, "colour", facts)
            ]
            place[how] += [float(part in one.parts) for one in colours if part >= 0]
            if how == "split":
                count = int(found.parts.max()) + 1
                rows["chance"].append(measured(rng.sample(details, len(found.details)), about, facts))
                place["chance"].append(1 / count)
                right += found.labels[0].label == facts["shape"]
                significant += found.labels[0].overlap.p < 0.05
    report: dict[str, Any] = {
        "bench": "mutual",
        "pictures": len(single),
        "pool": len(details),
        "label_right": right,
        "p_below_0.05": significant,
    }
    print(f"{'parts by':<10}{'precision':>10}{'recall':>8}{'place':>7}   {'  '.join(ASKED)}   s a picture")
    for name, values in rows.items():
        mean = np.mean(values, 0).round(3).tolist()
        print(f"{name:<10}{mean[0]:>10.2f}{mean[1]:>8.2f}{np.mean(place[name]):>7.2f}   "
              f"{'  '.join(f'{one:>{len(kind)}.2f}' for one, kind in zip(mean[2:], ASKED, strict=True))}   {seconds[name] / len(single):.2f}")  # fmt: skip
        report[name] = {"precision": mean[0], "recall": mean[1], "place": round(float(np.mean(place[name])), 3), "named": dict(zip(ASKED, mean[2:], strict=True))}  # fmt: skip
    print(json.dumps(report))


if __name__ == "__main__":
    main()
