"""What is needed to make a page again: the model, its preprocessing, its parity proof, this version."""

from clip_anatomy import __version__
from clip_anatomy.loading.clip import Clip

__all__ = ["model_facts"]


def model_facts(clip: Clip) -> list[tuple[str, str]]:
    """Return name and value of each fact, for people."""
    tower, pre = clip.vision, clip.preprocess
    rows, cols = pre.size
    proof = "skipped"
    if clip.proof is not None:
        errors = {"a random picture": clip.proof.image, "text": clip.proof.text}
        errors_text = " and ".join(f"{what} ({error:.0e})" for what, error in errors.items() if error is not None)
        proof = f"same as {clip.proof.against} on {errors_text}, relative"
    shape = f"{tower.layers} layers × {tower.heads} heads of {tower.d}, {rows} × {cols} pixels, patch {clip.patch[0]}"
    return [
        ("model", clip.name),
        ("weights", clip.digest),
        ("image tower", shape),
        ("preprocessing", f"{pre.resize}, {pre.interpolation}, crop {pre.crop}, mean {pre.mean}, std {pre.std}"),
        ("logit scale", f"{clip.logit_scale:.4g}"),
        ("parity with the host library", proof),
        ("clip-anatomy", __version__),
    ]
