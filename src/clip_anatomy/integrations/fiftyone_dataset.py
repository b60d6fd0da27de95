"""An explanation as a data set of FiftyOne: heatmaps, the answer, and what heads write, beside each picture."""

import base64
import io
import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.errors import BadInput
from clip_anatomy.files import path_of, write_text
from clip_anatomy.images.geometry import Geometry
from clip_anatomy.public_functions import public
from clip_anatomy.split.explanation import Explanation

__all__ = ["to_fiftyone"]

LONGEST = 96  # cells of a heatmap over the whole picture
MOST_HEADS = 12  # those that write most over all pictures and texts
FIELDS = "fiftyone.core.fields."
OF_LABELS = f"{FIELDS}EmbeddedDocumentField(fiftyone.core.labels."


@public
def to_fiftyone(explanation: Explanation, file: str | Path, name: str = "clip-anatomy") -> Path:
    """Write an explanation as one JSON file that FiftyOne reads: `fiftyone.Dataset.from_json(FILE)`. FiftyOne itself is not needed to write it.

    Each sample has `prediction` (the best text and its probability), a heatmap for each text (`map_a_bird`: what heads read from each place, as shares
    of the cosine, on one scale for all pictures; 0 where the model does not look), `cosine_a_bird`, and `head_7_3` for the twelve heads that write
    most: their share of the predicted text's cosine.

    Args:
        explanation: of pictures that are files.
        file: to write, dataset.json.
        name: of the data set.

    Returns:
        The file.

    Raises:
        BadInput: a picture that is no file, a comparison of two pictures or models.

    Example:
        >>> import json, tempfile, clip_anatomy as ca
        >>> from clip_anatomy.loading.demo import examples
        >>> why = ca.explain(ca.load("demo"), examples()[:2], ["a bird", "a fish"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     found = json.loads(ca.to_fiftyone(why, folder + "/dataset.json").read_text())
        >>> [sample["prediction"]["label"] for sample in found["samples"]]
        ['a bird', 'a bird']
    """
    if explanation.versus is not None:
        raise BadInput(
            "this explanation compares two; FiftyOne shows pictures one by one. Type: explain(clip, pictures, texts)"
        )
    files = [_file(one.image) for one in explanation.pictures or ()]
    if len(files) != len(explanation.images) or explanation.geometries is None:
        raise BadInput("FiftyOne shows files, and these pictures are none. Type: explain(clip, ['photo.jpg'], texts)")
    texts = [one.text for one in explanation.texts]
    keys = _keys(texts)
    shares = torch.stack([one.heads for one in explanation.images])  # [image, layer, head, text]
    strongest = shares.abs().mean((0, 3)).flatten().argsort(descending=True)[:MOST_HEADS]
    heads = [divmod(at, shares.shape[2]) for at in sorted(strongest.tolist())]
    limit = max(float(one.patches.abs().max()) for one in explanation.images) or 1.0
    samples: list[dict[str, Any]] = []
    for path, one, where in zip(files, explanation.images, explanation.geometries, strict=True):
        best = int(one.probability.argmax())
        answer = {
            "_cls": "Classification",
            "tags": [],
            "label": texts[best],
            "confidence": float(one.probability[best]),
        }
        sample: dict[str, Any] = {"filepath": path, "tags": [], "metadata": None, "prediction": answer}
        for at, key in enumerate(keys):
            drawn = over_picture(one.patches[..., at], where)
            sample[f"map_{key}"] = {"_cls": "Heatmap", "tags": [], "map": _binary(drawn), "range": [-limit, limit]}
            sample[f"cosine_{key}"] = float(one.cosine[at])
        sample |= {f"head_{layer}_{head}": float(one.heads[layer, head, best]) for layer, head in heads}
        samples.append(sample)
    fields = {"filepath": f"{FIELDS}StringField", "tags": f"{FIELDS}ListField({FIELDS}StringField)"}
    fields |= {"prediction": f"{OF_LABELS}Classification)"}
    fields |= {f"map_{key}": f"{OF_LABELS}Heatmap)" for key in keys}
    fields |= {f"cosine_{key}": f"{FIELDS}FloatField" for key in keys}
    fields |= {f"head_{layer}_{head}": f"{FIELDS}FloatField" for layer, head in heads}
    about = {"model": explanation.clip.name, "texts": dict(zip(keys, texts, strict=True)), "made by": "clip-anatomy"}
    whole = {"name": name, "media_type": "image", "sample_fields": fields, "info": about, "samples": samples}
    write_text(path_of(file), json.dumps(whole))
    return path_of(file)


def over_picture(patches: Float[Tensor, "row col"], where: Geometry) -> Float[np.ndarray, "_ _"]:
    """Lay a map over the whole picture, in at most 96 cells a side; 0 where the model does not look."""
    scale = min(1.0, LONGEST / max(where.picture))
    rows, cols = (max(1, round(side * scale)) for side in where.picture)
    row, col = (torch.arange(count) + 0.5 for count in (rows, cols))
    # The middle of each cell in the model's input, from −1 to 1 as grid_sample counts.
    down, right = (
        2 * ((at / count * side) * resized / side - offset) / size - 1
        for at, count, side, resized, offset, size in zip(
            (row, col), (rows, cols), where.picture, where.resized, where.offset, where.size, strict=True
        )
    )
    grid = torch.stack(torch.meshgrid(right, down, indexing="xy"), -1)
    drawn = F.grid_sample(patches[None, None].float(), grid[None].float(), "bilinear", "border", align_corners=False)
    inside = (grid.abs() <= 1).all(-1)
    return (drawn[0, 0] * inside).numpy().astype(np.float32)


def _binary(array: np.ndarray) -> dict[str, Any]:
    """Write an array as FiftyOne keeps it: numpy's own format, compressed, as binary data in JSON."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return {"$binary": {"base64": base64.b64encode(zlib.compress(file.getvalue())).decode(), "subType": "00"}}


def _keys(texts: list[str]) -> list[str]:
    """Make names of fields of texts; a number behind those that would be alike."""
    keys: list[str] = []
    for text in texts:
        key = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")[:40] or "text"
        keys.append(key if key not in keys else f"{key}_{len(keys)}")
    return keys


def _file(image: object) -> str:
    path = Path(image) if isinstance(image, str | Path) else None
    if path is None or not path.is_file():
        raise BadInput("FiftyOne shows files, and a picture is none. Type: explain(clip, ['photo.jpg'], texts)")
    return str(path.resolve())
