"""How right masks are on the demo world, by the rule that cuts them and with refinement: what the defaults of `segment` rest on.

python bench/segment.py                  # 120 pictures of one object, 60 of three or four, 80 of two kinds
python bench/segment.py --pictures 40
"""

import argparse
import json
import time

import numpy as np
import torch
from PIL import Image

import clip_anatomy as ca
from clip_anatomy.data.world.scenes import Scenes, World
from clip_anatomy.maps.segment import segment

RULES = ("lenient", "otsu", "mean", "half", 0.25, 0.35)
WORDS = {"shape": ("shape",), "colour, shape": ("colour", "shape"), "all": ("texture", "colour", "shape")}
FURTHER = [("decomposition", "lenient", "pamr"), ("surgery", "lenient", None), ("raw", "lenient", None)]
BEHIND = ("a brick", "a sky", "a water", "a grass", "a sand", "a snow", "a wood", "a night")
KINDS = [("lenient", ()), ("otsu", ()), ("none", BEHIND), ("lenient", BEHIND)]
Figures = dict[str, float]


def scenes(world: World, kind: str, count: int) -> Scenes:
    facts = world.facts(np.arange(20 * count))
    wanted = {"one": (facts.count == 1) & ~facts.mixed, "many": (facts.count > 2) & ~facts.mixed, "kinds": facts.mixed}
    return world.batch(np.flatnonzero(wanted[kind])[:count])


def one_text(clip: ca.Clip, drawn: Scenes, words: tuple[str, ...], way: tuple[str, str | float, str | None]) -> Figures:
    """IoU over all pixels, mean over pictures of the object's IoU, and how much of the object is covered."""
    method, rule, refine = way
    named, truth = drawn.labels(), drawn.masks.any(1)
    shared, either, ious, covered = np.zeros(2), np.zeros(2), [], []
    for i, pixels in enumerate(drawn.images):
        text = " ".join(("a", *(named[word][i] for word in words)))
        mask = segment(clip, Image.fromarray(pixels), [text], method, threshold=rule, refine=refine).mask(0)
        for k, (ours, true) in enumerate([(mask, truth[i]), (~mask, ~truth[i])]):
            shared[k] += (ours & true).sum()
            either[k] += (ours | true).sum()
        ious.append((mask & truth[i]).sum() / (mask | truth[i]).sum())
        covered.append((mask & truth[i]).sum() / truth[i].sum())
    return {
        "object": shared[0] / either[0], "background": shared[1] / either[1], "mIoU": float((shared / either).mean()),
        "per picture": float(np.mean(ious)), "covered": float(np.mean(covered)),
    }  # fmt: skip


def two_texts(clip: ca.Clip, drawn: Scenes, rule: str, behind: tuple[str, ...]) -> Figures:
    words = drawn.labels()
    shared, either = np.zeros(2), np.zeros(2)
    for i, pixels in enumerate(drawn.images):
        texts = [f"a {words['colour' + k][i]} {words['shape' + k][i]}" for k in ("", "2")]
        labels = segment(clip, Image.fromarray(pixels), texts, threshold=rule, background=behind).labels[0]
        true = np.zeros_like(labels)
        for k in range(2):
            true[drawn.masks[i, k]] = k + 1
        for k in range(3):
            shared[min(k, 1)] += ((labels == k) & (true == k)).sum()
            either[min(k, 1)] += ((labels == k) | (true == k)).sum()
    return {
        "object": shared[1] / either[1],
        "background": shared[0] / either[0],
        "mIoU": float((shared / either).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=120)
    count = parser.parse_args().pictures
    torch.set_num_threads(1)
    clip, world = ca.load("demo"), World(seed=7, split="test", length=10**6)
    results = []

    def show(pictures: Scenes, about: tuple[object, ...], started: float, found: Figures) -> None:
        row = {"pictures": len(pictures), **dict(zip(("kind", "words", "method", "threshold", "refine"), about, strict=False))}  # fmt: skip
        results.append({**row, **{name: round(float(value), 4) for name, value in found.items()}})
        figures = "  ".join(f"{name} {value:.3f}" for name, value in found.items())
        print(
            f"{' · '.join(str(x) for x in about if x):58} {figures}  {time.perf_counter() - started:.1f} s", flush=True
        )

    for kind, most in (("one", count), ("many", count // 2)):
        drawn = scenes(world, kind, most)
        rows = [(words, "decomposition", rule, None) for words in WORDS for rule in RULES]
        for words, method, rule, refine in [*rows, *(("all", *one) for one in FURTHER if kind == "one")]:
            start = time.perf_counter()
            found = one_text(clip, drawn, WORDS[words], (method, rule, refine))
            show(drawn, (kind, words, method, rule, refine or ""), start, found)
    drawn = scenes(world, "kinds", count * 2 // 3)
    for rule, behind in KINDS:
        start = time.perf_counter()
        about = ("two kinds, two texts", f"{len(behind)} background texts", "decomposition", rule)
        show(drawn, about, start, two_texts(clip, drawn, rule, behind))
    print(json.dumps({"bench": "segment", "results": results}))


if __name__ == "__main__":
    main()
