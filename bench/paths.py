"""Which paths carry a printed digit into the count of the demo model? `python bench/paths.py [--pictures 150]`.

Paths are held at their mean, one kind at a time, in a forward written out here: what an MLP writes into the values of all later heads toward the
class token's row (attention and norms of these heads as they are), and what the heads 0.1, 1.2 and 2.4 write into the input of later MLPs at
that row. Beside them the three heads held whole (`--effect rerun`). Accuracy of counting with a false and with a true digit, of reading the
digit and of the shape, on pictures of the balanced `val` draw with a digit. Prints a table and one line of JSON.
"""

import argparse
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import clip_anatomy as ca
from clip_anatomy.data.world.accuracy import classifier, pixels
from clip_anatomy.data.world.scenes import World
from clip_anatomy.towers.embedding import embed_image
from clip_anatomy.towers.operations import activate, linear, norm, project_in
from clip_anatomy.towers.readout import embed_readout, readout_of

DIGIT_HEADS = ((0, 1), (1, 2), (2, 4))
Pair = tuple[tuple[int, int], int]  # a head, and the MLP that reads it


def run(
    tower: Any, x: torch.Tensor, *, whole: tuple[Any, ...] = (), into_mlps: tuple[Pair, ...] = (), from_mlp: int = -1
) -> torch.Tensor:
    """Embed pictures with some heads whole, some (head, MLP) paths, or all paths of one MLP into later heads at their mean over the pictures."""
    stream, d = embed_image(tower, x), tower.d
    readout = readout_of(tower, x, stream.shape[1])
    rows: dict[tuple[int, int], torch.Tensor] = {}
    wrote = torch.zeros(())
    for layer, block in enumerate(tower.blocks):
        q, k, v = project_in(tower, block, norm(block.ln1, stream), None)
        attention = (q @ k.transpose(-1, -2) * d**-0.5).softmax(-1)
        z = attention @ v
        if 0 <= from_mlp < layer:
            inverse = (stream.var(-1, unbiased=False) + block.ln1.eps).rsqrt()
            read = (
                torch.einsum(
                    "iht,itw->ihw", attention[:, :, 0] * inverse[:, None], wrote - wrote.mean(-1, keepdim=True)
                )
                * block.ln1.weight
            )
            path = torch.einsum("ihw,hdw->ihd", read, block.value.weight.unflatten(0, (tower.heads, d)))
            z[:, :, 0] -= path - path.mean(0)
        for head in range(tower.heads):
            if (layer, head) in whole:
                z[:, head, 0] = z[:, head, 0].mean(0)
            rows[layer, head] = z[:, head, 0] @ block.out.weight[:, head * d : (head + 1) * d].T
        middle = stream + linear(block.out, z.transpose(1, 2).flatten(2))
        seen = middle.clone()
        for head, mlp in into_mlps:
            if mlp == layer:
                seen[:, 0] -= rows[head] - rows[head].mean(0)
        added = linear(block.down, activate(tower.activation, linear(block.up, norm(block.ln2, seen))))
        wrote = added if layer == from_mlp else wrote
        stream = middle + added
    return F.normalize(embed_readout(tower, stream[:, 0], None, readout).float(), dim=-1)


@torch.no_grad()
def main() -> None:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--pictures", type=int, default=150)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clip = ca.load("demo")
    tower = clip.image_tower
    world = World(seed=0, split="val", balanced=True, length=20_000)
    facts = world.facts(np.arange(20_000))
    told = np.flatnonzero(~facts.mixed & (facts.digit > 0) & (facts.group < 0))[: args.pictures]
    x, some = pixels(world.batch(told).images), facts[told]
    texts = {name: classifier(clip.encode_text, name) for name in ("count", "digit", "shape")}
    false = some.digit != some.count
    assert torch.allclose(run(tower, x[:8]), F.normalize(tower.encode(x[:8]), dim=-1), atol=1e-5)
    print(
        f"{len(told)} pictures, {int(false.sum())} with a false digit\n{'':<44}{'false':>8}{'true':>8}{'digit':>8}{'shape':>8}"
    )
    rows: dict[str, dict[str, float]] = {}

    def told_of(name: str, embed: Callable[[], torch.Tensor]) -> None:
        unit = embed()
        said = {key: (unit @ rows_.T).argmax(1).numpy() for key, rows_ in texts.items()}
        count = said["count"] == some.count - 1
        values = (count[false], count[~false], said["digit"] == some.digit - 1, said["shape"] == some.shape[:, 0])
        shares = [round(100 * float(one.mean()), 1) for one in values]
        rows[name] = dict(zip(("false", "true", "digit", "shape"), shares, strict=True))
        print(f"{name:<44}" + "".join(f"{value:>8.1f}" for value in shares), flush=True)

    told_of("nothing", lambda: run(tower, x))
    told_of("heads 0.1, 1.2, 2.4 whole", lambda: run(tower, x, whole=DIGIT_HEADS))
    for mlps in ((2,), (4,), (2, 4), (1, 2, 4), (1, 2, 3, 4), tuple(range(tower.layers))):
        pairs = tuple((head, mlp) for head in DIGIT_HEADS for mlp in mlps if head[0] <= mlp)
        name = "all MLPs" if len(mlps) == tower.layers else f"MLPs {', '.join(map(str, mlps))}"
        told_of(f"what these heads write into {name}", lambda pairs=pairs: run(tower, x, into_mlps=pairs))
    for layer in range(tower.layers - 1):
        told_of(f"what MLP {layer} writes into all later heads", lambda layer=layer: run(tower, x, from_mlp=layer))
    print(json.dumps({"bench": "paths", "pictures": len(told), "false": int(false.sum()), "rows": rows}))


if __name__ == "__main__":
    main()
