"""Open up a CLIP model: what every layer, head, token and MLP wrote into its embeddings.

The public names, nothing else. They are imported on first use, so that `import clip_anatomy` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from clip_anatomy import errors

if TYPE_CHECKING:
    from clip_anatomy.edits.ablate import ablate
    from clip_anatomy.edits.edit import Edit
    from clip_anatomy.edits.edited_clip import EditedClip
    from clip_anatomy.edits.selection import Selection
    from clip_anatomy.evaluation.faithfulness import Faithfulness, faithfulness
    from clip_anatomy.evaluation.sanity import Sanity, sanity
    from clip_anatomy.loading.clip import Clip
    from clip_anatomy.loading.load import load
    from clip_anatomy.loading.zero_shot import imagenet_templates
    from clip_anatomy.maps.attention_sinks import sinks
    from clip_anatomy.maps.dense_attention import DenseAttention
    from clip_anatomy.maps.heatmap import heatmap
    from clip_anatomy.maps.layer_maps import layer_maps
    from clip_anatomy.maps.map_result import Maps
    from clip_anatomy.maps.map_texts import Texts
    from clip_anatomy.maps.masks import Masks
    from clip_anatomy.maps.point_prompts import prompts
    from clip_anatomy.maps.segment import segment
    from clip_anatomy.maps.word_maps import WordMaps, word_maps
    from clip_anatomy.naming.atlas import Atlas
    from clip_anatomy.naming.build_atlas import atlas
    from clip_anatomy.naming.textspan import textspan
    from clip_anatomy.search.ranking import Ranking
    from clip_anatomy.search.search import search
    from clip_anatomy.split.means import Means
    from clip_anatomy.split.moments import Moments
    from clip_anatomy.split.parts import Contributions, Parts, decompose, decompose_text
    from clip_anatomy.store.index import index
    from clip_anatomy.store.store import Store
    from clip_anatomy.store.verify import verify
    from clip_anatomy.studies.ablation_study import study
    from clip_anatomy.studies.probe import probe
    from clip_anatomy.studies.repair import repair
    from clip_anatomy.studies.spurious_cue import find_cue
    from clip_anatomy.studies.study_result import Study
    from clip_anatomy.studies.waterbirds_protocol import paper_protocol

_HOME = {
    "ablate": "edits.ablate",
    "Atlas": "naming.atlas",
    "atlas": "naming.build_atlas",
    "Clip": "loading.clip",
    "Contributions": "split.parts",
    "decompose": "split.parts",
    "decompose_text": "split.parts",
    "Edit": "edits.edit",
    "EditedClip": "edits.edited_clip",
    "Faithfulness": "evaluation.faithfulness",
    "faithfulness": "evaluation.faithfulness",
    "find_cue": "studies.spurious_cue",
    "heatmap": "maps.heatmap",
    "imagenet_templates": "loading.zero_shot",
    "index": "store.index",
    "layer_maps": "maps.layer_maps",
    "load": "loading.load",
    "Maps": "maps.map_result",
    "Masks": "maps.masks",
    "Means": "split.means",
    "Moments": "split.moments",
    "paper_protocol": "studies.waterbirds_protocol",
    "Parts": "split.parts",
    "probe": "studies.probe",
    "prompts": "maps.point_prompts",
    "Ranking": "search.ranking",
    "DenseAttention": "maps.dense_attention",
    "repair": "studies.repair",
    "Sanity": "evaluation.sanity",
    "sanity": "evaluation.sanity",
    "search": "search.search",
    "segment": "maps.segment",
    "Selection": "edits.selection",
    "sinks": "maps.attention_sinks",
    "Store": "store.store",
    "Study": "studies.study_result",
    "study": "studies.ablation_study",
    "Texts": "maps.map_texts",
    "textspan": "naming.textspan",
    "verify": "store.verify",
    "word_maps": "maps.word_maps",
    "WordMaps": "maps.word_maps",
}

__all__ = [
    "Atlas",
    "Clip",
    "Contributions",
    "DenseAttention",
    "Edit",
    "EditedClip",
    "Faithfulness",
    "Maps",
    "Masks",
    "Means",
    "Moments",
    "Parts",
    "Ranking",
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
