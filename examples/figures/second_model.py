"""Reviewers of the decomposition: are the late layers as decisive in OpenAI's weights as in OpenCLIP's?

python examples/gallery.py second_model --model open_clip:ViT-L-14/laion2b_s32b_b82k --second open_clip:ViT-L-14/openai --store val.store --collection imagenet/val
"""

import tempfile

from panels import Setting, curves

import clip_anatomy as ca


def draw(on: Setting):
    """Ablate layers from the first up, in both models. On the demo: its own weights, and the same rounded to 3 bits."""
    with tempfile.TemporaryDirectory() as folder:
        ca.index(on.second, on.collection, f"{folder}/store", workers=1)
        other = ca.study(f"{folder}/store", "layers", clip=on.second)
    lines = {}
    for clip, study in ((on.clip, ca.study(on.store, "layers", clip=on.clip)), (on.second, other)):
        lines[clip.name] = [100 * one.accuracy for one in (study.whole, *study.effects)]
    layers = ["none", *range(len(other.effects))]
    return curves("Heads up to a layer at their mean", layers, lines, ("up to layer", "accuracy, %"))
