"""How right masks are on the demo world, by the rule that cuts them and with refinement: what the defaults of `segment` rest on.

python bench/segment.py                  # 120 pictures of one object, 80 of two
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

ONE = [("decomposition", rule, None) for rule in ("otsu", "mean", "half", 0.35)]
ONE += [("decomposition", "otsu", "pamr"), ("surgery", "otsu", None), ("raw", "otsu", None)]
TWO = [("otsu", ()), ("none", ("a brick", "a sky", "a water", "a grass", "a sand", "a snow", "a wood", "a night"))]
TWO.append(("otsu", TWO[1][1]))


def scenes(world: World, *, mixed: bool, count: int) -> Scenes:
    facts = world.facts(np.arange(20 * count))
    wanted = facts.mixed if mixed else (facts.count == 1) & ~facts.mixed
    return world.batch(np.flatnonzero(wanted)[:count])


def one_object(clip: ca.Clip, drawn: Scenes, method: str, rule: str | float, refine: str | None) -> dict[str, float]:
    words, truth = drawn.labels(), drawn.masks.any(1)
    shared, either = np.zeros(2), np.zeros(2)
    for i, pixels in enumerate(drawn.images):
        text = f"a {words['texture'][i]} {words['colour'][i]} {words['shape'][i]}"
        mask = segment(clip, Image.fromarray(pixels), [text], method, threshold=rule, refine=refine).mask(0)
        for k, (ours, true) in enumerate([(mask, truth[i]), (~mask, ~truth[i])]):
            shared[k] += (ours & true).sum()
            either[k] += (ours | true).sum()
    return {"object": shared[0] / either[0], "background": shared[1] / either[1]}


def two_objects(clip: ca.Clip, drawn: Scenes, rule: str, behind: tuple[str, ...]) -> dict[str, float]:
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
    return {"object": shared[1] / either[1], "background": shared[0] / either[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=120)
    count = parser.parse_args().pictures
    torch.set_num_threads(1)
    clip, world = ca.load("demo"), World(seed=7, split="test", length=10**6)
    results = []
    print(
        f"{'texts':>6} {'method':15} {'threshold':10} {'refine':7} {'background texts':17} object  background  mIoU   seconds"
    )
    for mixed, rows in ((False, ONE), (True, TWO)):
        drawn = scenes(world, mixed=mixed, count=count * 2 // 3 if mixed else count)
        for row in rows:
            start = time.perf_counter()
            if mixed:
                rule, behind = row
                method, refine, found = "decomposition", None, two_objects(clip, drawn, rule, behind)
            else:
                (method, rule, refine), behind = row, ()
                found = one_object(clip, drawn, method, rule, refine)
            seconds = time.perf_counter() - start
            mean = (found["object"] + found["background"]) / 2
            print(
                f"{1 + mixed:>6} {method:15} {rule!s:10} {refine or '':7} {len(behind) or '':<17} {found['object']:.3f}   "
                f"{found['background']:.3f}       {mean:.3f}  {seconds:.1f}",
                flush=True,
            )
            results.append({"texts": 1 + mixed, "method": method, "threshold": rule, "refine": refine, "background_texts": len(behind), **{k: round(float(v), 4) for k, v in found.items()}, "miou": round(float(mean), 4), "pictures": len(drawn)})  # fmt: skip
    print(json.dumps({"bench": "segment", "results": results}))


if __name__ == "__main__":
    main()
