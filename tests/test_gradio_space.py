"""The Gradio Space of examples/: runs on the bundled model, where Gradio is installed (it holds Pillow below 13, so not with us)."""

from pathlib import Path

import pytest
from modules import module_at
from PIL import Image

from clip_anatomy.loading.demo import examples

SPACE = Path(__file__).parent.parent / "examples" / "gradio_space.py"


def test_the_space_is_short_and_answers() -> None:
    pytest.importorskip("gradio", reason="Gradio is not installed. Type: pip install gradio")
    assert len(SPACE.read_text().splitlines()) <= 30
    module = module_at(SPACE)
    where, why = module.build().fn(Image.open(examples()[0]), "a bird")
    assert where.width >= 64
    assert "a bird" in why
