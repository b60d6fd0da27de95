"""Open up a CLIP model: what every layer, head, token and MLP wrote into its embeddings.

The public names, nothing else. They are imported on first use, so that `import clip_anatomy` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from clip_anatomy import errors

if TYPE_CHECKING:
    from clip_anatomy.anatomy.ablate import ablate
    from clip_anatomy.anatomy.atlas import Atlas
    from clip_anatomy.anatomy.edit import Edit
    from clip_anatomy.anatomy.edited import EditedClip
    from clip_anatomy.anatomy.means import Means
    from clip_anatomy.anatomy.moments import Moments
    from clip_anatomy.anatomy.parts import Contributions, Parts, decompose, decompose_text
    from clip_anatomy.anatomy.selection import Selection
    from clip_anatomy.anatomy.textspan import textspan
    from clip_anatomy.library.atlas import atlas
    from clip_anatomy.library.index import index
    from clip_anatomy.library.store import Store
    from clip_anatomy.library.verify import verify
    from clip_anatomy.maps.dense import Recipe
    from clip_anatomy.maps.heatmap import heatmap
    from clip_anatomy.maps.layers import layer_maps
    from clip_anatomy.maps.maps import Maps
    from clip_anatomy.maps.masks import Masks
    from clip_anatomy.maps.points import prompts
    from clip_anatomy.maps.segment import segment
    from clip_anatomy.maps.sinks import sinks
    from clip_anatomy.maps.texts import Texts
    from clip_anatomy.maps.words import WordMaps, word_maps
    from clip_anatomy.measure.faithfulness import Faithfulness, faithfulness
    from clip_anatomy.measure.sanity import Sanity, sanity
    from clip_anatomy.model.clip import Clip
    from clip_anatomy.model.load import load
    from clip_anatomy.model.zero_shot import imagenet_templates
    from clip_anatomy.repairs.cue import find_cue
    from clip_anatomy.repairs.paper import paper_protocol
    from clip_anatomy.repairs.probing import probe
    from clip_anatomy.repairs.repair import repair
    from clip_anatomy.repairs.studies import study
    from clip_anatomy.repairs.study import Study
    from clip_anatomy.retrieval.ranking import Ranking
    from clip_anatomy.retrieval.search import search

_HOME = {
    "ablate": "anatomy.ablate",
    "Atlas": "anatomy.atlas",
    "atlas": "library.atlas",
    "Clip": "model.clip",
    "Contributions": "anatomy.parts",
    "decompose": "anatomy.parts",
    "decompose_text": "anatomy.parts",
    "Edit": "anatomy.edit",
    "EditedClip": "anatomy.edited",
    "Faithfulness": "measure.faithfulness",
    "faithfulness": "measure.faithfulness",
    "find_cue": "repairs.cue",
    "heatmap": "maps.heatmap",
    "imagenet_templates": "model.zero_shot",
    "index": "library.index",
    "layer_maps": "maps.layers",
    "load": "model.load",
    "Maps": "maps.maps",
    "Masks": "maps.masks",
    "Means": "anatomy.means",
    "Moments": "anatomy.moments",
    "paper_protocol": "repairs.paper",
    "Parts": "anatomy.parts",
    "probe": "repairs.probing",
    "prompts": "maps.points",
    "Ranking": "retrieval.ranking",
    "Recipe": "maps.dense",
    "repair": "repairs.repair",
    "Sanity": "measure.sanity",
    "sanity": "measure.sanity",
    "search": "retrieval.search",
    "segment": "maps.segment",
    "Selection": "anatomy.selection",
    "sinks": "maps.sinks",
    "Store": "library.store",
    "Study": "repairs.study",
    "study": "repairs.studies",
    "Texts": "maps.texts",
    "textspan": "anatomy.textspan",
    "verify": "library.verify",
    "word_maps": "maps.words",
    "WordMaps": "maps.words",
}

__all__ = [
    "Atlas",
    "Clip",
    "Contributions",
    "Edit",
    "EditedClip",
    "Faithfulness",
    "Maps",
    "Masks",
    "Means",
    "Moments",
    "Parts",
    "Ranking",
    "Recipe",
    "Sanity",
    "Selection",
    "Store",
    "Study",
    "Texts",
    "WordMaps",
    "ablate",
    "atlas",
    "decompose",
    "decompose_text",
    "errors",
    "faithfulness",
    "find_cue",
    "heatmap",
    "imagenet_templates",
    "index",
    "layer_maps",
    "load",
    "paper_protocol",
    "probe",
    "prompts",
    "repair",
    "sanity",
    "search",
    "segment",
    "sinks",
    "study",
    "textspan",
    "verify",
    "word_maps",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"clip_anatomy.{_HOME[name]}"), name)
    raise AttributeError(f"module 'clip_anatomy' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
