"""What neurons × heads of a CLIP-ResNet take: bytes and seconds a picture, on the architecture asked for with random weights.

    python bench/neuron_heads.py                         # RN50x16, 24 random pictures; says what 1,000 would take
    python bench/neuron_heads.py --model RN50 --images 64

Prints one line of JSON: `held` is what stays in memory for 1,000 pictures, `peak_growth` how much memory the process took above the
opened model while these pictures were done (workspace of the forward included), `stored_as_released` what the released code writes.
"""

import argparse
import json
import resource
import time

import torch

import clip_anatomy as ca


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    import open_clip

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="RN50x16")
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--batch", type=int, default=2)
    asked = parser.parse_args()
    torch.manual_seed(0)
    clip = ca.load(open_clip.create_model(asked.model).eval())
    side = clip.preprocess.size[0]
    pixels = torch.randn(asked.images, 3, side, side)
    clip.encode_image(pixels[: asked.batch])  # the forward's own workspace is there before
    before, start = peak(), time.perf_counter()
    found = ca.neuron_heads(clip, pixels, batch=asked.batch)
    seconds = time.perf_counter() - start
    grown = peak() - before
    start = time.perf_counter()
    clip.encode_image(pixels[: asked.batch * 4])
    forward = (time.perf_counter() - start) / (asked.batch * 4)
    _, heads, neurons = found.scalars.shape
    each = (found.scalars.nbytes + found.embedding.nbytes) / asked.images
    directions = heads * neurons * clip.vision.embed * 4
    figures = {
        "model": asked.model,
        "images": asked.images,
        "pairs": heads * neurons,
        "held_megabytes_of_1000": round(1000 * each / 1e6),
        "peak_growth_megabytes": round(grown / 1e6),
        "stored_as_released_gigabytes_of_1000": round(1000 * directions / 1e9),
        "seconds_a_picture": round(seconds / asked.images, 3),
        "forward_alone": round(forward, 3),
    }
    print(json.dumps({"bench": "neuron_heads", **figures}))


if __name__ == "__main__":
    main()
