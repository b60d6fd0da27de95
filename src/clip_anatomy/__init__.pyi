"""The public names: each once, with where it lives. `__init__.py` reads this list and imports on first use."""

from clip_anatomy import errors as errors
from clip_anatomy.edits.ablate import ablate as ablate
from clip_anatomy.edits.edit import Edit as Edit
from clip_anatomy.edits.edited_clip import EditedClip as EditedClip
from clip_anatomy.edits.selection import Selection as Selection
from clip_anatomy.evaluation.faithfulness import Faithfulness as Faithfulness
from clip_anatomy.evaluation.faithfulness import faithfulness as faithfulness
from clip_anatomy.evaluation.sanity import Sanity as Sanity
from clip_anatomy.evaluation.sanity import sanity as sanity
from clip_anatomy.loading.clip import Clip as Clip
from clip_anatomy.loading.load import load as load
from clip_anatomy.loading.zero_shot import imagenet_templates as imagenet_templates
from clip_anatomy.maps.attention_sinks import sinks as sinks
from clip_anatomy.maps.dense_attention import DenseAttention as DenseAttention
from clip_anatomy.maps.heatmap import heatmap as heatmap
from clip_anatomy.maps.layer_maps import layer_maps as layer_maps
from clip_anatomy.maps.map_result import Maps as Maps
from clip_anatomy.maps.map_texts import Texts as Texts
from clip_anatomy.maps.masks import Masks as Masks
from clip_anatomy.maps.point_prompts import prompts as prompts
from clip_anatomy.maps.segment import segment as segment
from clip_anatomy.maps.word_maps import WordMaps as WordMaps
from clip_anatomy.maps.word_maps import word_maps as word_maps
from clip_anatomy.naming.atlas import Atlas as Atlas
from clip_anatomy.naming.build_atlas import atlas as atlas
from clip_anatomy.naming.textspan import textspan as textspan
from clip_anatomy.retrieval.ranking import Ranking as Ranking
from clip_anatomy.retrieval.search import search as search
from clip_anatomy.split.means import Means as Means
from clip_anatomy.split.moments import Moments as Moments
from clip_anatomy.split.parts import Contributions as Contributions
from clip_anatomy.split.parts import Parts as Parts
from clip_anatomy.split.parts import decompose as decompose
from clip_anatomy.split.parts import decompose_text as decompose_text
from clip_anatomy.store.index import index as index
from clip_anatomy.store.store import Store as Store
from clip_anatomy.store.verify import verify as verify
from clip_anatomy.studies.ablation_study import study as study
from clip_anatomy.studies.probe import probe as probe
from clip_anatomy.studies.repair import repair as repair
from clip_anatomy.studies.spurious_cue import find_cue as find_cue
from clip_anatomy.studies.study_result import Study as Study
from clip_anatomy.studies.waterbirds_protocol import paper_protocol as paper_protocol

__version__: str
