"""How well a linear map predicts recordings of which the truth is known, and what its channels are called: `python bench/align.py`.

Simulated recordings of pictures of the demo world, five repeats with noise: channels that answer to one colour, shape or background each, one
to the count, one to nothing. Printed: correlation over held-out pictures beside noise ceiling, chance and p, and the first text of the
channel's direction. `--out align.png` writes the figure of docs/align.md. Prints a table and one line of JSON.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import clip_anatomy as ca
from clip_anatomy.data.open_dataset import open_dataset
from clip_anatomy.report.figures import png

COUNTS = ("one", "two", "three", "four")
CHANNELS = (
    ("colour", "red"),
    ("colour", "blue"),
    ("shape", "bird"),
    ("shape", "star"),
    ("background", "sky"),
    ("background", "water"),
)


def main() -> None:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument(
        "--noise", type=float, default=1.0, help="standard deviation of a repeat's noise, in those of the channel"
    )
    parser.add_argument("--out", type=Path, help="file of the figure")
    args = parser.parse_args()
    clip = ca.load("demo")
    pictures: list[Any] = list(open_dataset(f"world:{args.pictures}:test"))
    x = clip.encode_image([one.data for one in pictures])
    x = x / x.norm(dim=-1, keepdim=True)
    answers = [[float(one.meta.get(column) == value) for one in pictures] for column, value in CHANNELS]
    answers += [[float(COUNTS.index(one.meta["count"]) if one.meta.get("count") in COUNTS else 0) for one in pictures]]
    names = [*(f"{column} {value}" for column, value in CHANNELS), "count", "nothing"]
    rng = np.random.default_rng(0)
    truth = np.array([*answers, rng.normal(size=len(pictures))]).T
    truth[:, -1] = 0
    spread = np.where(truth.std(0) > 0, truth.std(0), 1.0)
    recordings = truth + args.noise * spread * rng.normal(size=(5, *truth.shape))
    found = ca.align(x, recordings, channels=names)
    called = ca.concepts(clip, directions=found.weight.float(), count=1)
    rows = {}
    print(f"{'':<20}{'r':>7}{'ceiling':>9}{'chance':>8}{'p':>8}  first text")
    assert found.ceiling is not None
    for at, name in enumerate(names):
        text = called.of(at)[0][0] if called.of(at) else ""
        values = [float(one[at]) for one in (found.r, found.ceiling, found.chance, found.p)]
        rows[name] = {
            "r": round(values[0], 3),
            "ceiling": round(values[1], 3),
            "chance": round(values[2], 3),
            "p": round(values[3], 4),
            "text": text,
        }
        print(f"{name:<20}{values[0]:>7.2f}{values[1]:>9.2f}{values[2]:>8.2f}{values[3]:>8.3f}  {text}")
    if args.out:
        args.out.write_bytes(png(found.figure()))
    print(json.dumps({"bench": "align", "pictures": len(pictures), "noise": args.noise, "channels": rows}))


if __name__ == "__main__":
    main()
