"""Who finds what a sentence names? Pointing at one to four objects whose place is known, by pairs and by maps.

    python bench/pairs.py                    # 40 mosaics of four unseen pictures of the demo world, each of one object
    python bench/pairs.py --mosaics 8 --forwards 128

A mosaic is 2 × 2 pictures; a sentence names the first one, two, three or four of them ("a red circle and a blue star"). For each named
object the strongest patch of its words counts as a hit if it lies in its quarter (chance 0.25), and `share` is the part of what is
positive that lies there. `exact pairs` and `FIxLIP` read the words in the whole sentence; `decomposition` and `Grad-ECLIP` get each
object's phrase alone. Prints a table and one line of JSON.
"""

import argparse
import json
import time
from collections import defaultdict

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import clip_anatomy as ca
from clip_anatomy.data.world.attribute_names import COLOURS, SHAPES
from clip_anatomy.data.world.scenes import World

SIDE, MOST = 32, 4


def mosaics(count: int) -> list[tuple[Image.Image, list[tuple[str, str]]]]:
    """Draw mosaics of four pictures of one object each, no colour or shape twice, with (colour, shape) of each quarter."""
    world = World(seed=5, size=SIDE, split="test", length=40 * count)
    facts = world.facts(np.arange(len(world)))
    found: list[tuple[Image.Image, list[tuple[str, str]]]] = []
    chosen: list[int] = []
    for at in np.flatnonzero((facts.count == 1) & (facts.digit == 0)).tolist():
        same = [
            one
            for one in chosen
            if facts.shape[one, 0] == facts.shape[at, 0] or facts.colour[one, 0] == facts.colour[at, 0]
        ]
        if same:
            continue
        chosen.append(at)
        if len(chosen) == MOST:
            images = world.batch(np.array(chosen)).images
            picture = np.concatenate([np.concatenate(list(images[row : row + 2]), 1) for row in (0, 2)], 0)
            words = [(COLOURS[facts.colour[one, 0]], SHAPES[facts.shape[one, 0]]) for one in chosen]
            found.append((Image.fromarray(picture), words))
            chosen = []
        if len(found) == count:
            break
    return found


def scores(values: Tensor, quarter: int) -> tuple[float, float]:
    """Say whether the strongest patch lies in a quarter of the picture, and how much of what is positive does."""
    grid = values.unflatten(0, (8, 8))
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[4 * (quarter // 2) : 4 * (quarter // 2) + 4, 4 * (quarter % 2) : 4 * (quarter % 2) + 4] = True
    positive = grid.clamp_min(0)
    return float(inside.flatten()[int(values.argmax())]), float(
        positive[inside].sum() / positive.sum().clamp_min(1e-12)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mosaics", type=int, default=40)
    parser.add_argument("--forwards", type=int, default=512)
    asked = parser.parse_args()
    clip = ca.load("demo")
    found: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
    seconds: dict[str, float] = defaultdict(float)
    errors: list[float] = []
    for picture, words in mosaics(asked.mosaics):
        phrases = [f"a {colour} {shape}" for colour, shape in words]
        side: ca.Pairs | None = None
        maps = {}
        for name, method in (("decomposition", "decomposition"), ("Grad-ECLIP", "grad_eclip")):
            start = time.perf_counter()
            maps[name] = ca.heatmap(clip, [picture], phrases, method=method).values[0].flatten(1)
            seconds[name] += time.perf_counter() - start
        for named in range(1, MOST + 1):
            sentence = " and ".join(phrases[:named])
            start = time.perf_counter()
            exact = ca.pairs(clip, picture, sentence)
            seconds["exact pairs"] += time.perf_counter() - start
            start = time.perf_counter()
            side = ca.pairs(clip, picture if side is None else side.a, sentence, how="removal", forwards=asked.forwards)
            seconds["FIxLIP"] += time.perf_counter() - start
            assert side.errors is not None
            errors.append(float(side.errors.max() / side.values.abs().max()))
            for quarter, (colour, shape) in enumerate(words[:named]):
                columns = [at for at, word in enumerate(exact.b.parts) if word in (colour, shape)]
                found["exact pairs", named].append(scores(exact.values[:, columns].sum(1), quarter))
                found["FIxLIP", named].append(scores(side.values[:, columns].sum(1), quarter))
                for name, values in maps.items():
                    found[name, named].append(scores(values[quarter], quarter))
    print(
        f"{'method':<16}{'1':>12}{'2':>12}{'3':>12}{'4':>12}   hit (share of positive) by number of named objects; s a picture"
    )
    report: dict[str, object] = {"bench": "pairs", "mosaics": asked.mosaics, "forwards": asked.forwards}
    report["largest_error_of_largest_value"] = round(float(np.mean(errors)), 3)
    for name in ("exact pairs", "FIxLIP", "Grad-ECLIP", "decomposition"):
        means = [np.mean(found[name, named], 0) for named in range(1, MOST + 1)]
        print(
            f"{name:<16}"
            + "".join(f"{hit:>6.2f} ({share:.2f})" for hit, share in means)
            + f"{seconds[name] / asked.mosaics:>9.2f}"
        )
        report[name] = {
            "hit": [round(float(hit), 3) for hit, _ in means],
            "share": [round(float(share), 3) for _, share in means],
        }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
