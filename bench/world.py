"""Measure the bundled model on its world, and the speed of the world: `python bench/world.py [--pictures N] [--split test]`.

Prints the full table (zero-shot, unseen pictures, unseen prompts; through open_clip's own class), pictures per second
on one core, and one JSON line.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import open_clip
import torch
from safetensors.torch import load_file

from clip_anatomy.data.world import World
from clip_anatomy.data.world.accuracy import evaluate
from clip_anatomy.loading import word_tokenizer as words

DEMO = Path(words.__file__).parent / "demo"


def bundled() -> open_clip.CLIP:
    """Load the shipped weights into open_clip's own class."""
    config = json.loads((DEMO / "open_clip_config.json").read_text(encoding="utf-8"))
    model = open_clip.CLIP(**config["model_cfg"])
    model.load_state_dict(
        {k: v.float() for k, v in load_file(DEMO / "open_clip_model.safetensors").items()}, strict=True
    )
    return model.eval()


def pictures_per_second(size: int, n: int = 1024) -> float:
    """Draw n pictures and return how many a second of CPU time."""
    world = World(size=size)
    world.batch(np.arange(128))
    began = time.process_time()
    for start in range(0, n, 128):
        world.batch(np.arange(start, start + 128))
    return n / (time.process_time() - began)


def main() -> None:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--split", default="test", choices=("val", "test"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    rates = {str(size): round(pictures_per_second(size, 1024 if size == 64 else 128)) for size in (64, 224)}
    torch.set_num_threads(2)
    model, tokenizer = bundled(), words.WordTokenizer.bundled()
    report = evaluate(
        model.encode_image, lambda texts: model.encode_text(tokenizer(texts)), args.pictures, split=args.split
    )
    print(report.table())
    print("\npictures drawn per second and core: " + ", ".join(f"{rate} at {size} px" for size, rate in rates.items()))
    print(json.dumps({"bench": "world", "split": args.split, **report.json(), "pictures_per_second": rates}))


if __name__ == "__main__":
    main()
