"""Which methods' maps mean anything: every question of `heatmap --sanity` on the demo world, all methods in one table.

    python bench/sanity.py                                  # 40 pictures, every method (some ten minutes, two quiet cores)
    python bench/sanity.py --pictures 10 --methods raw surgery decomposition

Pictures of one object, texts of twelve shapes; the object's own text is asked in deletion, insertion and pointing.
Prints a table and one line of JSON.
"""

import argparse
import json

import torch

import clip_anatomy as ca
from clip_anatomy.data.world.accuracy import article
from clip_anatomy.data.world.attribute_names import SHAPES
from clip_anatomy.evaluation.faithfulness import faithfulness
from clip_anatomy.evaluation.known_objects import world_objects
from clip_anatomy.evaluation.sanity import sanity
from clip_anatomy.maps.registry import METHODS, as_published


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=40)
    parser.add_argument("--methods", nargs="*", default=[name for name, method in METHODS.items() if not method.needs])
    asked = parser.parse_args()
    clip = ca.load("demo")
    cases = list(world_objects(clip, asked.pictures, target="shape"))
    pixels = torch.cat([case.pixels for case in cases])
    masks = {(image, text): mask for image, (_, text, mask) in enumerate(one for case in cases for one in case.targets)}
    texts = [article(shape) for shape in SHAPES]
    columns = ("text", "weights", "contrast", "gain, mean", "gain, ROAD", "pointing")
    print(f"{'method':<16}" + "".join(f"{name:>12}" for name in columns), flush=True)
    rows = []
    for method in asked.methods:
        less = as_published(clip, method)
        found = sanity(clip, pixels, texts, method, **less)
        figures = {c.name: c.figure for c in found.checks if c.limit is not None}
        both = [
            faithfulness(clip, pixels, texts, method, masks=masks, occlusion=occlusion, **less)
            for occlusion in ("mean", "road")
        ]
        assert both[0].pointing is not None
        row = [*(figures[name] for name in columns[:3]), both[0].gain(), both[1].gain(), both[0].pointing.rate]
        rows.append({"method": method, **dict(zip(columns, row, strict=True))})
        print(f"{method:<16}" + "".join(f"{value:>12.2f}" for value in row), flush=True)
    print(json.dumps({"pictures": len(masks), "rows": rows}))


if __name__ == "__main__":
    main()
