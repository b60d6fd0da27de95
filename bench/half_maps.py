"""How far every map in half precision is from the same map in float32.

    python bench/half_maps.py                       # the bundled model on its own pictures, and a random B/32
    python bench/half_maps.py --models demo --methods decomposition,gradcam

Each row: the correlation over all patches, images and texts, and the largest difference as a share of the largest value of the map in float32.
The weights of the float32 model are those of the other, widened, so that what is measured is the computation.
"""

import argparse
import copy
import json
from pathlib import Path

import torch
from torch import Tensor

import clip_anatomy as ca
from clip_anatomy.loading.demo import examples
from clip_anatomy.maps.registry import METHODS

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def pair(model: str, dtype: str) -> tuple[ca.Clip, ca.Clip, Tensor, Tensor]:
    """Open a model in half precision and its twin in float32, with pixels and texts."""
    if model == "demo":
        half = ca.load(Path(ca.__file__).parent / "loading" / "demo", dtype=dtype, parity=False)
        texts, pixels = (
            ca.load("demo").encode_text(["a bird", "a fish over water", "a star"]),
            half.pixels(examples()[:4]),
        )
    else:
        import open_clip

        torch.manual_seed(0)
        half = ca.load(open_clip.CLIP(**open_clip.get_model_config(model)).eval().to(DTYPES[dtype]), parity=False)
        generator = torch.Generator().manual_seed(1)
        pixels = torch.randn(2, 3, *half.preprocess.size, generator=generator).to(DTYPES[dtype])
        texts = torch.randn(3, half.vision.embed, generator=generator)
    return half, ca.load(copy.deepcopy(half.host).float(), parity=False), pixels, texts


def difference(half: ca.Clip, wide: ca.Clip, pixels: Tensor, texts: Tensor, method: str) -> tuple[float, float]:
    """Return correlation and largest difference of one method's maps."""
    cells = wide.vision.grid[0] * wide.vision.grid[1]
    shared = torch.rand(len(pixels), cells, cells, generator=torch.Generator().manual_seed(2))
    options = {"affinity": shared} if "affinity" in METHODS[method].needs else {}
    plain = ca.heatmap(wide, pixels.float(), texts, method, **options).values.double()
    rounded = ca.heatmap(half, pixels, texts, method, **options).values.double()
    together = torch.corrcoef(torch.stack([plain.flatten(), rounded.flatten()]))[0, 1]
    return float(together), float((plain - rounded).abs().max() / plain.abs().max())


def main() -> None:
    """Print the table and one line of JSON."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--models", default="demo,ViT-B-32")
    options.add_argument("--methods", default=",".join(METHODS))
    given = options.parse_args()
    rows: dict[str, dict[str, tuple[float, float]]] = {}
    heads = [(model, dtype) for model in given.models.split(",") for dtype in DTYPES]
    for model, dtype in heads:
        opened = pair(model, dtype)
        for method in given.methods.split(","):
            rows.setdefault(method, {})[f"{model} {dtype}"] = difference(*opened, method)
    print("| method |" + "".join(f" {model}, {dtype} |" for model, dtype in heads))
    print("| --- |" + " --- |" * len(heads))
    for method, row in rows.items():
        print(f"| {method} |" + "".join(f" {r:.4f}, {100 * most:.1f} % |" for r, most in row.values()))
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
