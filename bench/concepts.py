"""What sparse concepts get right on the demo world, where the truth is known, and what they cost.

    python bench/concepts.py                 # 24 unseen pictures of one object

Prints one line of JSON: share explained beside chance, texts a picture, and in how many pictures the true word is among them.
"""

import json
import time

import clip_anatomy as ca
from clip_anatomy.data.open_dataset import open_dataset

PICTURES, ASKED = 24, ("colour", "shape", "background", "texture")


def main() -> None:
    clip = ca.load("demo")
    pictures = [one for one in open_dataset("world:64:test") if one.meta["count"] == "one"][:PICTURES]
    images = [one.data for one in pictures]
    ca.concepts(clip, images)  # texts are embedded and kept
    start = time.perf_counter()
    found = ca.concepts(clip, images)
    named = {
        kind: sum(any(str(one.meta[kind]) in text for text, _ in found.of(row)) for row, one in enumerate(pictures))
        for kind in ASKED
    }
    figures = {
        "pictures": len(pictures),
        "vocabulary": len(found.texts),
        "explained": round(float(found.explained.mean()), 3),
        "chance": round(found.chance[0], 3),
        "texts": round(float((found.weights > 0).sum(1).double().mean()), 1),
        "seconds_a_picture": round((time.perf_counter() - start) / len(pictures), 3),
    }
    print(json.dumps({"bench": "concepts", **figures, "named": named}))


if __name__ == "__main__":
    main()
