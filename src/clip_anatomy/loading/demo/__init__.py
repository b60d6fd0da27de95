"""The bundled small CLIP: an ordinary model in open_clip's saved format, which opens without needing open_clip.

It knows only its small synthetic world (see README.md beside this file). Its parity proof runs against embeddings that open_clip
itself computed with these weights and that ship beside them.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file

from clip_anatomy.loading.checkpoint import read_json, read_state
from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.double_precision import in_double
from clip_anatomy.loading.host import BorrowedTensors, TowerConfig
from clip_anatomy.loading.open_clip_models import open_clip_preprocess
from clip_anatomy.loading.open_clip_towers import open_clip_towers
from clip_anatomy.loading.parity import TOLERANCE, Proof, judge, relative, rounding
from clip_anatomy.loading.score_rule import ScoreRule
from clip_anatomy.loading.word_tokenizer import WordTokenizer

HERE = Path(__file__).parent
EPS = 1e-5  # torch's LayerNorm default, which open_clip keeps


def examples() -> list[Path]:
    """Return paths of the bundled pictures of the demo world.

    Example:
        >>> len(examples()) >= 4
        True
    """
    return sorted((HERE / "examples").glob("*.png"))


def load_demo(device: torch.device, dtype: torch.dtype, *, parity: bool = True) -> Clip:
    """Open the bundled model.

    Args:
        device: where to put the weights.
        dtype: in which precision to run.
        parity: compare with the embeddings recorded from open_clip.

    Returns:
        Clip named "demo".
    """
    config = read_json(HERE / "open_clip_config.json")
    architecture, vision, text = (
        config["model_cfg"],
        config["model_cfg"]["vision_cfg"],
        config["model_cfg"]["text_cfg"],
    )
    state = read_state(HERE / "open_clip_model.safetensors")
    activation = "quick_gelu" if architecture.get("quick_gelu") else "gelu"
    image, text = (
        TowerConfig(vision["width"] // vision.get("head_width", 64), activation, EPS, pool="class"),
        TowerConfig(text["heads"], activation, EPS, pool="argmax", causal=True),
    )
    shipped = open_clip_towers(BorrowedTensors(state), image, text, model="the bundled model")
    cast = BorrowedTensors({k: v.to(device, dtype) for k, v in state.items()})
    image_tower, text_tower = open_clip_towers(cast, image, text, model="the bundled model")
    proof: Proof | None = None
    if parity:
        recorded = load_file(HERE / "parity.safetensors")
        exact = [in_double(one.encode, recorded[name]) for one, name in zip(shipped, ("image", "tokens"), strict=True)]
        proof = Proof(
            "open_clip (recorded)",
            relative(exact[0], recorded["image_embed"]),
            relative(exact[1], recorded["text_embed"]),
            TOLERANCE[torch.float32],  # the precision of the record
            (
                rounding(image_tower, recorded["image"].to(device, dtype), exact[0]),
                rounding(text_tower, recorded["tokens"].to(device), exact[1]),
            ),
        )
        judge(proof)
    return Clip(
        name="demo",
        vision=image_tower,
        text_tower=text_tower,
        preprocess=open_clip_preprocess(config.get("preprocess_cfg"), vision["image_size"]),
        tokenizer=WordTokenizer.bundled(),
        rule=ScoreRule(state["logit_scale"]),
        proof=proof,
    )
