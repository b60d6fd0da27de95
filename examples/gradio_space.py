"""A Gradio Space: a picture and a text in, where the text is answered and what every head adds out.

pip install 'clip-anatomy[open-clip,figures]' gradio
python examples/gradio_space.py                                   # the bundled model
python examples/gradio_space.py open_clip:ViT-B-32/laion2b_s34b_b79k
"""

import sys

import gradio
from PIL import Image

import clip_anatomy as ca


def build(model: str = "demo") -> gradio.Interface:
    """Make the Space for a model."""
    clip = ca.load(model)

    def answer(picture: Image.Image, text: str) -> tuple[Image.Image, str]:
        explained = ca.explain(clip, picture, [text])
        return ca.heatmap(clip, picture, [text]).overlay(), explained.summary()

    inputs = [gradio.Image(type="pil", label="picture"), gradio.Textbox("a bird", label="text")]
    return gradio.Interface(answer, inputs, [gradio.Image(label="where"), gradio.Textbox(label="why")], title="Why?")


if __name__ == "__main__":
    build(*sys.argv[1:2]).launch()
