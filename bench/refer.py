"""Which region does the phrase name? Scenes of the demo world with two to four objects of two kinds, whose masks are known.

    python bench/refer.py                    # 300 unseen scenes
    python bench/refer.py --scenes 60 --own 20

One object of a scene is of one kind, the others of another ("a red circle", three "blue stars"). Three sorts of phrases: `thing` names an object
that is the only one of its kind; `named and placed` adds where it lies beside the other ("a red circle left of a blue star"), which is not needed to find it;
`placed` names one of several alike, which its place alone tells apart ("a blue star above a red circle"). Printed: the share of phrases whose
object is chosen among the masks of all objects, and, among proposals from our own maps, mIoU. `global-local` is crop-and-mask CLIP (Yu et al. 2023), two forwards
a mask; `the thing's words alone` are `split` before places are looked at; `chance` draws a mask. Prints a table and one line of JSON.
"""

import argparse
import json
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

import clip_anatomy as ca
from clip_anatomy.data.world.attribute_names import COLOURS, SHAPES
from clip_anatomy.data.world.attributes import SceneAttributes, draw_attributes
from clip_anatomy.data.world.captions import article
from clip_anatomy.data.world.random_numbers import PictureRandom
from clip_anatomy.data.world.render import render
from clip_anatomy.evaluation.referring_task import Overlap

SIZE, SEED, TIED = 64, 11, 4
KINDS = ("thing", "named and placed", "placed")
THING = "split, the thing's words alone"
METHODS = (
    "split",
    "split, words weighed",
    "split, no places",
    "split, no places, words weighed",
    "global-local",
    "global-local, no places",
)
SIDES = (("left of", "right of"), ("above", "below"))
CLEAR = 0.12  # of the picture's side, between two middles of which one is said to lie beside the other


@dataclass(frozen=True)
class Asked:
    """A phrase, the scene and the object that it names."""

    kind: str
    phrase: str
    scene: int
    target: int


def scenes(count: int, split: str) -> tuple[SceneAttributes, np.ndarray, np.ndarray]:
    """Draw scenes of two to four objects: the first of one kind, the others of another; no kind whose background tells it."""
    every = np.arange(8 * count)
    facts = draw_attributes(PictureRandom(every, SEED, split))
    chosen = np.flatnonzero((facts.count >= 2) & (facts.digit == 0) & ~facts.mixed & (facts.shape[:, 0] >= TIED))[
        :count
    ]
    dice = PictureRandom(every[chosen], SEED, split)
    facts = draw_attributes(dice)
    rng = np.random.default_rng(SEED)
    shape = (facts.shape[:, 0] - TIED + rng.integers(1, len(SHAPES) - TIED, len(chosen))) % (len(SHAPES) - TIED) + TIED
    colour = (facts.colour[:, 0] + rng.integers(1, len(COLOURS), len(chosen))) % len(COLOURS)
    texture = rng.integers(0, 4, len(chosen))
    pairs = {"shape": shape, "colour": colour, "texture": texture}
    facts = replace(facts, **{name: np.stack([getattr(facts, name)[:, 0], codes], 1) for name, codes in pairs.items()})
    return facts, *render(facts, dice, SIZE)


def phrases(facts: SceneAttributes, masks: np.ndarray) -> list[Asked]:
    """Write every phrase that is true of exactly one object."""
    found: list[Asked] = []
    for scene in range(len(facts)):
        count, centre = int(facts.count[scene]), facts.centre[scene]
        if (masks[scene, :count].sum((1, 2)) < 30).any():
            continue  # hidden
        one, other = (article(f"{COLOURS[facts.colour[scene, k]]} {SHAPES[facts.shape[scene, k]]}") for k in (0, 1))
        found.append(Asked("thing", one, scene, 0))
        found += [Asked("thing", other, scene, 1)] if count == 2 else []
        for axis, words in enumerate(SIDES):
            gaps = centre[1:count, axis] - centre[0, axis]
            for sign, word, back in ((-1, words[0], words[1]), (1, words[1], words[0])):
                beside, near = np.flatnonzero(sign * gaps > CLEAR), np.flatnonzero(sign * gaps > CLEAR / 3)
                if len(beside) == len(near) == 1:
                    kind = "placed" if count > 2 else "named and placed"
                    found.append(Asked(kind, f"{other} {word} {one}", scene, 1 + int(beside[0])))
                if len(beside) == count - 1:
                    found.append(Asked("named and placed", f"{one} {back} {other}", scene, 0))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--own", type=int, default=100, help="scenes with proposals from our own maps")
    parser.add_argument("--split", default="test")
    asked = parser.parse_args()
    clip = ca.load("demo")
    facts, images, masks = scenes(asked.scenes, asked.split)
    right: dict[tuple[str, str], list[float]] = defaultdict(list)
    own: dict[tuple[str, str], Overlap] = defaultdict(Overlap)
    seconds: dict[str, float] = defaultdict(float)
    for one in phrases(facts, masks):
        picture, count = Image.fromarray(images[one.scene]), int(facts.count[one.scene])
        right["chance", one.kind].append(1 / count)
        for name in METHODS:
            method, _, rest = name.partition(",")
            start = time.perf_counter()
            found = ca.refer(
                clip,
                picture,
                one.phrase,
                masks[one.scene, :count],
                method=method,
                places="no places" not in rest,
                weigh="weighed" in rest,
            )
            seconds[name] += time.perf_counter() - start
            right[name, one.kind].append(float(found.names[0] == f"mask {one.target}"))
            if name == METHODS[0]:  # the words that name the thing, without where it lies
                best = int(found.by_word[:, list(found.read.thing)].sum(1).argmax())
                right[THING, one.kind].append(float(found.names[best] == f"mask {one.target}"))
            if one.scene < asked.own:
                found = ca.refer(
                    clip, picture, one.phrase, method=method, places="no places" not in rest, weigh="weighed" in rest
                )
                truth = masks[one.scene, one.target]
                ious = [float((mask & truth).sum() / (mask | truth).sum()) for mask in found.masks]
                own[name, one.kind].add(found.mask, truth, ious)
    report: dict[str, Any] = {
        "bench": "refer",
        "scenes": asked.scenes,
        "phrases": {kind: len(right["chance", kind]) for kind in KINDS},
    }
    report["phrases with our own proposals"] = {kind: len(own[METHODS[0], kind].inside) for kind in KINDS}
    print("the right object among the masks of all objects; mIoU (P@0.5) among our own proposals; ms a phrase")
    print(f"{'':<36}" + "".join(f"{kind:>20}" for kind in KINDS) + "".join(f"{kind:>22}" for kind in KINDS))
    for name in (*METHODS, THING, "chance"):
        shares = [float(np.mean(right[name, kind])) for kind in KINDS]
        line = f"{name:<36}" + "".join(f"{share:>20.3f}" for share in shares)
        overlaps = [own[name if name in METHODS else METHODS[0], kind].figures() for kind in KINDS]
        if name == "chance":
            line += "".join(f"{one['mIoU of a random proposal']:>22.3f}" for one in overlaps)
        elif name in METHODS:
            line += "".join(f"{one['mIoU']:>14.3f} ({one['P@0.5']:.3f})" for one in overlaps)
            line += f"{1000 * seconds[name] / sum(len(right[name, kind]) for kind in KINDS):>8.0f}"
        print(line)
        report[name] = {"right": [round(share, 3) for share in shares]}
        if name in METHODS:
            report[name]["mIoU"] = [round(one["mIoU"], 3) for one in overlaps]
    best = [own[METHODS[0], kind].figures()["mIoU of the best proposal"] for kind in KINDS]
    print(f"{'best proposal':<96}" + "".join(f"{one:>22.3f}" for one in best))
    print(json.dumps(report))


if __name__ == "__main__":
    main()
