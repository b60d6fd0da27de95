"""Who finds what a sentence names? Pointing at one to four objects whose place is known, by pairs and by maps.

    python bench/pairs.py                    # 40 mosaics of four unseen pictures of the demo world, each of one object
    python bench/pairs.py --mosaics 8 --forwards 128
    python bench/pairs.py --photographs ../shared/data/coco --pictures 12 --forwards 128
    python bench/pairs.py --photographs ../shared/data/coco --model open_clip:ViT-B-32/openai

A mosaic is 2 × 2 pictures; a sentence names the first one, two, three or four of them ("a red circle and a blue star"). Photographs come
with masks (images/, masks/, mask_classes.json); a sentence names the one to four largest of what the model sees of a picture. For each named
object the strongest patch of its words counts as a hit if it lies on the object, and `share` is the part of what is positive that lies
there; `chance` is the object's share of the patches. `exact pairs` and `FIxLIP` read the words in the whole sentence; `decomposition` and
`Grad-ECLIP` get each object's phrase alone. Without --model photographs are shown to a ViT-B/32 of random weights: that only
proves that it runs, its hits are chance. Prints a table and one line of JSON.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import clip_anatomy as ca
from clip_anatomy.data.mask_folder import open_sample
from clip_anatomy.data.masked import IGNORED, spread
from clip_anatomy.data.world.attribute_names import COLOURS, SHAPES
from clip_anatomy.data.world.scenes import World
from clip_anatomy.evaluation.foreground import aligned_mask
from clip_anatomy.evaluation.known_objects import patch_mask
from clip_anatomy.images.geometry import patch_grid

SIDE, MOST = 32, 4
METHODS = ("exact pairs", "FIxLIP", "Grad-ECLIP", "decomposition")


@dataclass(frozen=True)
class Case:
    """A picture, a phrase for each object, and on which patches it lies."""

    picture: Image.Image
    phrases: list[str]
    masks: list[Tensor]

    def columns(self, object_: int) -> list[int]:
        """Which words of the joined sentence are the object's own, without its article."""
        before = sum(len(phrase.split()) + 1 for phrase in self.phrases[:object_])
        return list(range(before + 1, before + len(self.phrases[object_].split())))


def quarter(at: int) -> Tensor:
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[4 * (at // 2) : 4 * (at // 2) + 4, 4 * (at % 2) : 4 * (at % 2) + 4] = True
    return inside


def mosaics(count: int) -> Iterator[Case]:
    """Draw mosaics of four pictures of one object each, no colour or shape twice."""
    world = World(seed=5, size=SIDE, split="test", length=40 * count)
    facts = world.facts(np.arange(len(world)))
    chosen: list[int] = []
    drawn = 0
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
            phrases = [f"a {COLOURS[facts.colour[one, 0]]} {SHAPES[facts.shape[one, 0]]}" for one in chosen]
            yield Case(Image.fromarray(picture), phrases, [quarter(at) for at in range(MOST)])
            chosen, drawn = [], drawn + 1
        if drawn == count:
            return


def photographs(clip: ca.Clip, folder: Path, count: int) -> Iterator[Case]:
    """Photographs with the largest one to four things that the model sees of them."""
    data = open_sample(folder)
    for entry in spread(data.entries, count):
        image, mask = entry.picture(), entry.mask()
        where = clip.preprocess.geometry(*image.size)
        visible, grid = aligned_mask(mask, where), patch_grid(where.size, clip.patch)
        there = {
            int(one): patch_mask(visible == one, grid) for one in torch.unique(visible[visible != IGNORED]).tolist()
        }
        names = sorted((one for one in there if there[one].any()), key=lambda one: -int(there[one].sum()))[:MOST]
        if names:
            yield Case(image, [f"a {data.classes[one]}" for one in names], [there[one] for one in names])


def random_model() -> ca.Clip:
    import open_clip

    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-32").eval()
    return ca.load(model, tokenizer=open_clip.get_tokenizer("ViT-B-32"))


def scores(values: Tensor, inside: Tensor) -> tuple[float, float, float]:
    """Say whether the strongest patch lies on the object, how much of what is positive does, and the object's share of the patches."""
    flat = inside.flatten()
    positive = values.clamp_min(0)
    share = positive[flat].sum() / positive.sum().clamp_min(1e-12)
    return float(flat[int(values.argmax())]), float(share), float(flat.double().mean())


def measure(
    clip: ca.Clip, case: Case, forwards: int, found: dict[tuple[str, int], list[tuple[float, float, float]]],
    seconds: dict[str, float],
) -> list[float]:  # fmt: skip
    """Score all methods on one picture; returns the largest standard errors of FIxLIP over its largest values."""
    side: ca.Pairs | None = None
    maps: dict[str, Tensor] = {}
    errors: list[float] = []
    for name, method in (("decomposition", "decomposition"), ("Grad-ECLIP", "grad_eclip")):
        start = time.perf_counter()
        maps[name] = ca.heatmap(clip, [case.picture], case.phrases, method=method).values[0].flatten(1)
        seconds[name] += time.perf_counter() - start
    for named in range(1, len(case.phrases) + 1):
        sentence = " and ".join(case.phrases[:named])
        start = time.perf_counter()
        exact = ca.pairs(clip, case.picture, sentence)
        seconds["exact pairs"] += time.perf_counter() - start
        assert list(exact.b.parts) == sentence.split()
        start = time.perf_counter()
        side = ca.pairs(clip, case.picture if side is None else side.a, sentence, how="removal", forwards=forwards)
        seconds["FIxLIP"] += time.perf_counter() - start
        assert side.errors is not None
        errors.append(float(side.errors.max() / side.values.abs().max()))
        for at, inside in enumerate(case.masks[:named]):
            columns = case.columns(at)
            found["exact pairs", named].append(scores(exact.values[:, columns].sum(1), inside))
            found["FIxLIP", named].append(scores(side.values[:, columns].sum(1), inside))
            for name, values in maps.items():
                found[name, named].append(scores(values[at], inside))
    return errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mosaics", type=int, default=40)
    parser.add_argument("--forwards", type=int, default=512)
    parser.add_argument("--photographs", type=Path)
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--model", help="for photographs; by default a ViT-B/32 of random weights")
    asked = parser.parse_args()
    if asked.photographs is None:
        clip, report = ca.load("demo"), {"bench": "pairs", "mosaics": asked.mosaics}
        cases = mosaics(asked.mosaics)
    else:
        clip = random_model() if asked.model is None else ca.load(asked.model)
        weights = "random: this only proves that it runs" if asked.model is None else asked.model
        report = {"bench": "pairs", "photographs": asked.photographs.name, "weights": weights}
        cases = photographs(clip, asked.photographs, asked.pictures)
    found: dict[tuple[str, int], list[tuple[float, float, float]]] = defaultdict(list)
    seconds: dict[str, float] = defaultdict(float)
    errors: list[float] = []
    pictures = 0
    for case in cases:
        errors += measure(clip, case, asked.forwards, found, seconds)
        pictures += 1
    print_table(found, {name: spent / pictures for name, spent in seconds.items()})
    report |= {"pictures": pictures, "forwards": asked.forwards}
    report["largest_error_of_largest_value"] = round(float(np.mean(errors)), 3)
    for name in METHODS:
        means = [np.mean(found[name, named], 0) for named in range(1, MOST + 1) if found[name, named]]
        report[name] = {key: [round(float(one[at]), 3) for one in means] for at, key in enumerate(("hit", "share"))}
    chance = [np.mean(found[METHODS[0], named], 0)[2] for named in range(1, MOST + 1) if found[METHODS[0], named]]
    print(json.dumps(report | {"chance": [round(float(one), 3) for one in chance]}))


def print_table(found: dict[tuple[str, int], list[tuple[float, float, float]]], seconds: dict[str, float]) -> None:
    columns = [named for named in range(1, MOST + 1) if found[METHODS[0], named]]
    print(
        f"{'method':<16}{''.join(f'{named:>12}' for named in columns)}   hit (share of positive) by number of named objects; s a picture"
    )
    for name in METHODS:
        means = [np.mean(found[name, named], 0) for named in columns]
        print(f"{name:<16}{''.join(f'{hit:>6.2f} ({share:.2f})' for hit, share, _ in means)}{seconds[name]:>9.2f}")
    means = [np.mean(found[METHODS[0], named], 0) for named in columns]
    print(f"{'chance':<16}{''.join(f'{area:>6.2f}      ' for *_, area in means)}")


if __name__ == "__main__":
    main()
