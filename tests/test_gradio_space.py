"""The Gradio Space of examples/: runs on the bundled model, where Gradio is installed (it holds Pillow below 13, so not with us)."""

import importlib.util
from pathlib import Path

import pytest
from PIL import Image

from clip_anatomy.loading.demo import examples

SPACE = Path(__file__).parent.parent / "examples" / "gradio_space.py"


def test_the_space_is_short_and_answers() -> None:
    pytest.importorskip("gradio", reason="Gradio is not installed. Type: pip install gradio")
    assert len(SPACE.read_text().splitlines()) <= 30
    spec = importlib.util.spec_from_file_location("gradio_space", SPACE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    where, why = module.build().fn(Image.open(examples()[0]), "a bird")
    assert where.width >= 64
    assert "a bird" in why
