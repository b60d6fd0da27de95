"""Open up a CLIP model: what every layer, head, token and MLP wrote into its embeddings.

The public names, nothing else. They are imported on first use, so that `import clip_anatomy` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from clip_anatomy import errors

if TYPE_CHECKING:
    from clip_anatomy.anatomy.atlas import Atlas
    from clip_anatomy.anatomy.moments import Moments
    from clip_anatomy.anatomy.parts import Contributions, Parts, decompose, decompose_text
    from clip_anatomy.anatomy.textspan import textspan
    from clip_anatomy.library.atlas import atlas
    from clip_anatomy.library.index import index
    from clip_anatomy.library.ranking import Ranking
    from clip_anatomy.library.search import search
    from clip_anatomy.library.store import Store
    from clip_anatomy.library.verify import verify
    from clip_anatomy.maps.heatmap import Maps, heatmap
    from clip_anatomy.model.clip import Clip
    from clip_anatomy.model.load import load

_HOME = {
    "Atlas": "anatomy.atlas",
    "Ranking": "library.ranking",
    "Store": "library.store",
    "search": "library.search",
    "atlas": "library.atlas",
    "index": "library.index",
    "verify": "library.verify",
    "Clip": "model.clip",
    "Contributions": "anatomy.parts",
    "Maps": "maps.heatmap",
    "Moments": "anatomy.moments",
    "Parts": "anatomy.parts",
    "decompose": "anatomy.parts",
    "decompose_text": "anatomy.parts",
    "heatmap": "maps.heatmap",
    "load": "model.load",
    "textspan": "anatomy.textspan",
}

__all__ = [
    "Atlas",
    "Clip",
    "Contributions",
    "Maps",
    "Moments",
    "Parts",
    "Ranking",
    "Store",
    "atlas",
    "decompose",
    "decompose_text",
    "errors",
    "heatmap",
    "index",
    "load",
    "search",
    "textspan",
    "verify",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"clip_anatomy.{_HOME[name]}"), name)
    raise AttributeError(f"module 'clip_anatomy' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
