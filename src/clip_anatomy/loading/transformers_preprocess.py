"""How a transformers image processor makes pixels, as a `Preprocess`: every flag is read, or refused by its name."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from clip_anatomy.errors import BadCheckpoint, UnsupportedModel, reading
from clip_anatomy.images.preprocess import OPENAI_MEAN, OPENAI_STD, Preprocess
from clip_anatomy.loading.checkpoint import read_json

_INTERPOLATION = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # mean and deviation of its pictures
_READ = {"do_resize", "do_center_crop", "do_rescale", "do_normalize"}
_WITHOUT_EFFECT = {"do_convert_rgb"}  # pictures are always converted


def saved_processor(name: str | Path) -> Any | None:
    """Open the image processor that was saved with a model, with transformers' own code; None where none was.

    Args:
        name: a folder (preprocessor_config.json, or processor_config.json alone as transformers 5 writes it), or ORG/NAME.

    Raises:
        BadCheckpoint: a folder's configuration that transformers cannot read.
    """
    import transformers

    folder = Path(name)
    if not folder.is_dir():
        try:
            return transformers.AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
        except (OSError, ValueError, ImportError):
            return None
    alone, together = folder / "preprocessor_config.json", folder / "processor_config.json"
    if not alone.is_file() and not (together.is_file() and "image_processor" in read_json(together)):
        return None
    with reading(f"the image processor of {folder}", "Save it again: processor.save_pretrained(FOLDER)", BadCheckpoint):
        return transformers.AutoImageProcessor.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def preprocess_of(config: Any, saved: Any | None = None) -> tuple[Preprocess, Callable[[Image.Image], Tensor] | None]:
    """Read how a model wants its pixels, from the processor saved with it or its library's own; and that processor's code, for the proof.

    A model of texts alone has a `Preprocess` that nothing reads.
    """
    if config.model_type.endswith("text_model"):
        return Preprocess(size=(224, 224), mean=OPENAI_MEAN, std=OPENAI_STD), None
    processor = saved or default_processor(config)
    return read_processor(processor), partial(processor_pixels, processor)


def default_processor(config: Any) -> Any:
    """Make the image processor of a model that came without one: its library's own, at the model's size."""
    import transformers

    vision = getattr(config, "vision_config", config)
    of_patches = getattr(vision, "num_patches", None)  # SigLIP 2 of any size has a table of positions instead of a size
    side = int(vision.image_size) if of_patches is None else 0
    square = {"height": side, "width": side}
    kind = config.model_type.removesuffix("_vision_model")
    if of_patches is not None:
        return transformers.Siglip2ImageProcessor(patch_size=int(vision.patch_size), max_num_patches=int(of_patches))
    if kind.startswith("siglip"):
        return transformers.SiglipImageProcessor(size=square)
    if kind.startswith("dinov2"):
        return transformers.BitImageProcessor(
            size={"shortest_edge": side}, crop_size=square, image_mean=_IMAGENET[0], image_std=_IMAGENET[1]
        )
    if kind == "dinov3_vit":
        return transformers.ViTImageProcessor(size=square, image_mean=_IMAGENET[0], image_std=_IMAGENET[1])
    if kind in ("vit", "align"):
        return transformers.ViTImageProcessor(size=square)
    if kind == "blip":
        return transformers.BlipImageProcessor(size=square)
    return transformers.CLIPImageProcessor(size={"shortest_edge": side}, crop_size=square)


def processor_pixels(processor: Any, picture: Image.Image) -> Tensor:
    """Run transformers' own code on one picture → [3, row, col], for the proof; patches are put together again."""
    output = processor(picture, return_tensors="pt")  # the fast processors of 4.56 to 5.0 give nothing else
    pixels = torch.as_tensor(output["pixel_values"][0])
    if "spatial_shapes" not in output:
        return pixels
    rows, cols = (int(n) for n in output["spatial_shapes"][0])
    side = int(processor.patch_size)
    return pixels[: rows * cols].view(rows, cols, side, side, -1).permute(4, 0, 2, 1, 3).flatten(3).flatten(1, 2)


def read_processor(processor: Any) -> Preprocess:
    """Read an image processor of transformers.

    Args:
        processor: a CLIPImageProcessor, SiglipImageProcessor, ViTImageProcessor … .

    Raises:
        UnsupportedModel: it does what a `Preprocess` cannot; the message names the flag.
    """
    settings: Mapping[str, Any] = processor.to_dict()
    more = [
        flag for flag, on in settings.items() if flag.startswith("do_") and on and flag not in _READ | _WITHOUT_EFFECT
    ]
    if more:
        raise _refusal(settings, more[0])
    if not settings.get("do_resize", True):
        raise _refusal(settings, "do_resize")
    if settings.get("resample", 3) not in _INTERPOLATION:
        raise _refusal(settings, "resample")
    # Pixels are rescaled from 0..255, ours from 0..1; what the two factors differ by goes into mean and deviation.
    factor = 255 * (settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 1.0)
    normalized = settings.get("do_normalize", True)
    mean, std = (settings["image_mean"], settings["image_std"]) if normalized else ((0.0,) * 3, (1.0,) * 3)
    return Preprocess.from_dict(
        {
            "mean": [float(x) / factor for x in mean],
            "std": [float(x) / factor for x in std],
            "interpolation": _INTERPOLATION[settings.get("resample", 3)],
            "crop": "floor",
            "transparent": "white" if _puts_on_white(processor) else "dropped",
            **_shape(settings),
        }
    )


def _puts_on_white(processor: Any) -> bool:
    """Ask the processor what it sees where a picture is transparent: later releases of transformers 5 see white, those before drop it."""
    clear = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    try:
        seen, black = (processor_pixels(processor, picture) for picture in (clear, clear.convert("RGB")))
    except (ValueError, RuntimeError):  # it takes opaque pictures only
        return True
    return not torch.equal(seen, black)


def _shape(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Give `size`, `resize` and what belongs to it: scaled by the short side and cropped, squashed, or as many patches as fit."""
    if settings.get("max_num_patches"):
        side, most = int(settings["patch_size"]), int(settings["max_num_patches"])
        square = int(most**0.5) * side
        return {"size": (square, square), "resize": "patches", "patches": (side, most)}
    size, crop = _sides(settings, "size"), _sides(settings, "crop_size") if settings.get("do_center_crop") else None
    if set(size) == {"height", "width"}:
        if crop not in (None, size):
            raise _refusal(settings, "crop_size")
        return {"size": (size["height"], size["width"]), "resize": "squash"}
    if set(size) != {"shortest_edge"}:
        raise _refusal(settings, "size")
    if crop is None:  # pictures of every shape
        raise _refusal(settings, "do_center_crop")
    if set(crop) != {"height", "width"}:
        raise _refusal(settings, "crop_size")
    rows, cols, edge = crop["height"], crop["width"], size["shortest_edge"]
    return {"size": (rows, cols), "short_side": None if rows == cols == edge else edge}


def _sides(settings: Mapping[str, Any], key: str) -> dict[str, int]:
    value = settings.get(key) or {}
    if isinstance(value, int):
        value = {"shortest_edge": value} if key == "size" else {"height": value, "width": value}
    return {side: int(length) for side, length in value.items() if length is not None}


def _refusal(settings: Mapping[str, Any], flag: str) -> UnsupportedModel:
    kind = settings.get("image_processor_type", "image processor")
    return UnsupportedModel(
        f"the {kind} of this model has {flag}: {settings.get(flag)!r} (size {settings.get('size')}), which is not supported. "
        "Type: load(..., preprocess=Preprocess(size=(...), mean=..., std=...))"
    )
