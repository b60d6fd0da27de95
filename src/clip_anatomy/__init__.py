"""Open up a CLIP model: what every layer, head, token and MLP wrote into its embeddings.

The public names are listed once, in `__init__.pyi`. They are imported on first use, so that `import clip_anatomy` costs nothing.
"""

import ast
from importlib import import_module
from pathlib import Path
from typing import Any

from clip_anatomy import errors as errors

_HOME = {
    alias.name: str(line.module)
    for line in ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")).body
    if isinstance(line, ast.ImportFrom)
    for alias in line.names
}
__all__ = sorted(_HOME)  # noqa: PLE0605 # pyright: ignore[reportUnsupportedDunderAll]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOME or name == "errors":
        raise AttributeError(f"module 'clip_anatomy' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
