"""The golden set: the numbers of every verb on three small models, read through the public names and `--json` alone.

    python tests/golden/make.py [--out FOLDER]

One function per verb gives {key: value}; keys are our own words, so a renamed attribute or JSON key is followed where it is read,
and the stored files stay as they are. Floats go to golden.npz, all else to golden.json. Keys that begin with `changes/` are what
is known to change on purpose: maps at another resolution than the model's own, and relevance through more than one layer.
"""

import argparse
import contextlib
import io
import json
import os
import runpy
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

import clip_anatomy as ca

HERE = Path(__file__).parent
MOST = 280  # entries of an array that are kept
Found = dict[str, Any]

METHODS = [
    "decomposition", "surgery", "maskclip", "maskclip_ffn", "raw", "sclip", "clearclip", "naclip", "qq", "kk", "vv", "gem",
    "proxyclip", "attention", "rollout", "gradcam", "legrad", "chefer",
]  # fmt: skip
OF_RESNETS = ["decomposition", "surgery", "maskclip", "clearclip", "naclip", "raw", "gradcam", "chefer", "attention"]
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
CONFIGS: dict[str, Any] = {
    "vit": {
        "embed_dim": 12,
        "quick_gelu": True,
        "vision_cfg": {"image_size": [32, 48], "patch_size": 8, "layers": 3, "width": 24, "head_width": 8},
        "text_cfg": TEXT,
    },
    "resnet": {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 96, "layers": [2, 1, 2, 1], "width": 4, "head_width": 16, "patch_size": None},
        "text_cfg": TEXT,
    },
}
SHAPES = {"demo": (64, 64), "vit": (64, 96), "resnet": (96, 96)}  # of pictures of which the model cuts nothing off
TEXTS = ["a bird", "a red circle", "the sky"]
WORLD = "world:200:val:balanced"


def shaken(model: nn.Module) -> nn.Module:
    """Every parameter and BatchNorm statistic random, so that a forgotten one shows."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in [*model.named_parameters(), *model.named_buffers()]:
            noise = torch.randn(p.shape, generator=draw) if p.is_floating_point() else None
            if noise is None or name in ("logit_scale", "attn_mask"):
                continue
            if name.endswith("running_var"):
                p.copy_(noise.abs() + 0.5)
            elif p.dim() <= 1:
                p.copy_(noise * 0.3 + (1.0 if name.endswith("weight") else 0.0))
            else:
                p.copy_(noise * (0.5 if "embedding" in name else 1.3 / p[0].numel() ** 0.5))
    return model.eval()


def saved_model(name: str, folder: Path) -> str:
    """A random model in a folder, as open_clip saves one."""
    import open_clip
    from safetensors.torch import save_file

    torch.manual_seed(0)
    state = shaken(open_clip.CLIP(**CONFIGS[name])).state_dict()
    folder.mkdir(parents=True)
    save_file({k: v.contiguous() for k, v in state.items() if k != "attn_mask"}, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIGS[name]}))
    return str(folder)


def drawn(seed: int, rows: int, cols: int) -> Image.Image:
    """A coloured disc and a stripe on a slope of another colour."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:rows, :cols].astype(float)
    ground, disc, stripe = rng.integers(0, 256, (3, 3)).astype(float)
    image = ground * (0.5 + 0.5 * (y / rows))[..., None] + rng.normal(0, 4, (rows, cols, 3))
    at = rng.uniform(0.3, 0.7, 2) * (rows, cols)
    image[(y - at[0]) ** 2 + (x - at[1]) ** 2 < (min(rows, cols) / 4) ** 2] = disc
    image[:, cols // 8 : cols // 6] = stripe
    return Image.fromarray(image.clip(0, 255).astype(np.uint8))


def command(*words: str) -> tuple[int, Any, str]:
    """The command line in this process: (exit code, what it printed as JSON, what it said beside it)."""
    out, beside, before, code = io.StringIO(), io.StringIO(), sys.argv, 0
    sys.argv = ["clip-anatomy", *words]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(beside):
            runpy.run_module("clip_anatomy", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.argv = before
    return code, json.loads(out.getvalue() or "null"), beside.getvalue()


def done(*words: str) -> Any:
    """What a verb that must not fail printed as JSON."""
    code, said, beside = command(*words, "--json")
    assert code == 0, f"exit code {code}: {words}\n{beside[-2000:]}"
    return said


class Made:
    """One model with its pictures and its store, each made when first asked for."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder / name
        self.folder.mkdir(parents=True, exist_ok=True)

    @cached_property
    def spec(self) -> str:
        return "demo" if self.name == "demo" else saved_model(self.name, self.folder / "model")

    @cached_property
    def clip(self) -> Any:
        return ca.load(self.spec)

    @cached_property
    def pictures(self) -> list[str]:
        return [self._picture(seed, *SHAPES[self.name]) for seed in range(2)]

    @cached_property
    def wide(self) -> str:
        """A picture of another shape: what the model does not crop of it, it looks at with other positions."""
        return self._picture(2, 100, 170)

    def _picture(self, seed: int, rows: int, cols: int) -> str:
        path = self.folder / f"picture {seed}.png"
        drawn(seed, rows, cols).save(path)
        return str(path)

    @cached_property
    def asked(self) -> list[str]:
        """The texts as words of the command line, and the model."""
        return [*(word for text in TEXTS for word in ("--text", text)), "--model", self.spec]

    @cached_property
    def store(self) -> str:
        path = str(self.folder / "store")
        self.indexed = done("index", WORLD, path, "--model", self.spec, "--keep", "heads,mlps", "--batch", "8")
        self.atlas = done(
            "atlas", path, "--pool", "world", "--texts", "8" if self.name == "demo" else "5", "--resamples", "10"
        )
        return path

    @cached_property
    def repaired(self) -> tuple[Any, str]:
        folder = self.folder / "repaired"
        silence = [] if self.name == "demo" else ["--select", "0.1,2.0,2.2+mlp=1"]
        return done("repair", self.store, "--out", str(folder), *silence), str(folder / "edit.json")


def explain_numbers(m: Made) -> Found:
    found: Found = {}
    text = m.clip.encode_text(TEXTS)
    found |= {"picture_embedding": m.clip.encode_image(m.pictures), "cropped_embedding": m.clip.encode_image([m.wide])}
    for former, convention in (("own", "centered"), ("even", "official")):
        parts = ca.decompose(m.clip, m.pictures, convention=convention)
        why = parts.toward(text)
        found |= {
            f"{former}/wrote_heads": parts.heads, f"{former}/wrote_mlps": parts.mlps,
            f"{former}/wrote_start": parts.input_embedding, f"{former}/wrote_bias": parts.bias,
            f"{former}/why_cosine": why.cosine, f"{former}/why_heads": why.heads, f"{former}/why_mlps": why.mlps,
            f"{former}/why_start": why.input_embedding, f"{former}/why_bias": why.bias,
            f"{former}/why_tokens": parts.tokens(text),
        }  # fmt: skip
    said = done("explain", *m.pictures, m.wide, *m.asked)
    if m.name == "demo":
        said["images"] += done("demo")["images"]
    for i, picture in enumerate(said["images"]):
        found |= {
            f"said/{i}/picture": [picture["image"].split("/")[-1], picture["width"], picture["height"]],
            f"said/{i}/seen": picture["visible"],
        }
        answers = picture["texts"]
        for name, key in (
            ("cosine", "cosine"), ("probability", "probability"), ("heads", "heads"), ("mlps", "mlps"), ("start", "input_embedding"),
            ("bias", "bias"), ("patches", "patches"), ("class_token", "class_token"),
        ):  # fmt: skip
            found[f"said/{i}/{name}"] = np.array([answer[key] for answer in answers], float)
        found[f"said/{i}/texts"] = [answer["text"] for answer in answers]
        for side, key in (("for", "yes"), ("against", "no"), ("patches_for", "yes_patches")):
            named = [pair for answer in answers for pair in answer["yes_and_no"][key]]
            found[f"said/{i}/{side}"] = [name for name, _ in named]
            found[f"said/{i}/{side}_share"] = np.array([share for _, share in named])
        found[f"said/{i}/contrast"] = np.array([answer["against_other_texts"]["cosine"] for answer in answers])
    return found


def check_numbers(m: Made) -> Found:
    code, said, beside = command("check", m.spec, "--json")
    assert said, f"exit code {code}\n{beside[-2000:]}"
    former = {"centered": "own", "official": "even"}
    rows = [
        [row["claim"], row["tower"], former.get(row["convention"], row["convention"]), row["allowed"], row["holds"]]
        for row in said["checks"]
    ]
    return {"exit_code": code, "holds": said["holds"], "claims": json.dumps(rows)}


def heatmap_numbers(m: Made) -> Found:
    def maps(method: Any = "decomposition", pictures: Any = None, **options: Any) -> torch.Tensor:
        if method in ("decomposition", "surgery"):
            options = {"against": "each other", **options}
        return ca.heatmap(m.clip, pictures or m.pictures, TEXTS, method=method, **options).values

    resnet = m.name == "resnet"
    patches = maps("attention")[0, 0].numel()
    unit = nn.functional.normalize(torch.randn(patches, 5, generator=torch.Generator().manual_seed(1)), dim=-1)
    needs = {"proxyclip": {"affinity": unit @ unit.T}}
    found: Found = {name: maps(name, **needs.get(name, {})) for name in (OF_RESNETS if resnet else METHODS)}
    found["chefer"] = found["chefer"] / m.clip.logit_scale  # its score was the cosine, and is the logit
    found |= {
        "one_text": ca.heatmap(m.clip, m.pictures, TEXTS[:1], against="nothing").values,
        "prompts": maps(templates=["a photo of {}.", "{} in a drawing"]),
        "some_heads": maps(heads="0.1,0.3" if resnet else "1.0,2.1"),
        "maskclip_denoised": maps("maskclip", denoise=0.3),
        "maskclip_smooth": maps("maskclip", smooth_keys=True),
        "without_sinks": maps(replace_sinks=True),
        "cropped": maps(pictures=[m.wide]),
        "on_picture": ca.heatmap(m.clip, [m.wide], TEXTS, against="each other").on_picture(0).nan_to_num(nan=-9.0),
        "by_layer": torch.stack([one.values for one in ca.layer_maps(m.clip, m.pictures, TEXTS, against="each other")]),
        "sinks_attention": ca.sinks(m.clip, m.pictures).attention,
        "sinks_length": ca.sinks(m.clip, m.pictures).length,
    }
    if not resnet:
        variant = ca.DenseAttention(("qq", "vv"), residual=True, ffn=True, depth=2, neighbours=2.0)
        found |= {
            "own_recipe": maps(variant), "some_layers": maps(layers="0-1"), "legrad_depth": maps("legrad", layers=3),
            "gradcam_layer": maps("gradcam", layer=-2), "attention_layer": maps("attention", layer=1),
        }  # fmt: skip

    def unit(one: Mapping[str, Any]) -> float:
        return m.clip.logit_scale if one["method"] == "chefer" else 1.0

    less = ["--against", "each other"]
    # Not "all": methods that came later are pinned by their own tests.
    every = ",".join(OF_RESNETS if resnet else [one for one in METHODS if one not in needs])
    said = done("heatmap", m.pictures[0], "--method", every, *m.asked, *less)
    found["said_methods"] = said["methods"]
    found["said_maps"] = np.array([np.array(one["values"]) / unit(one) for one in said["images"][0]["maps"]])
    if m.name == "demo":
        found["windows"] = maps(pictures=[m.wide], window=64, stride=32)
        said = done("heatmap", "--demo", "--method", every, *m.asked, *less)
        for i, picture in enumerate(said["images"]):
            found[f"said/{i}/picture"] = picture["image"]
            found[f"said/{i}/maps"] = np.array([np.array(one["values"]) / unit(one) for one in picture["maps"]])
            found[f"said/{i}/lowest_highest"] = np.array(
                [[one["lowest"] / unit(one), one["highest"] / unit(one)] for one in picture["maps"]]
            )
            found[f"said/{i}/peak"] = np.array([one["peak"] for one in picture["maps"]])
            found[f"said/{i}/order"] = [f"{one['method']}: {one['text']}" for one in picture["maps"]]
    return found


def segment_numbers(m: Made) -> Found:
    found: Found = {}
    ways: list[tuple[str, dict[str, Any]]] = [
        ("plain", {"threshold": "otsu"}),
        ("mean", {"threshold": "mean", "method": "maskclip"}),
    ]
    ways += [
        ("background", {"background": ["the water"], "threshold": "none"}),
        ("refined", {"threshold": "otsu", "refine": "pamr"}),
    ]
    for name, options in ways:
        masks = ca.segment(m.clip, m.pictures, TEXTS, **options)
        found[f"{name}/labels"] = [
            np.bincount(np.asarray(one).ravel() + 1, minlength=5).tolist() for one in masks.labels
        ]
        found[f"{name}/somewhere"] = [np.asarray(one).ravel()[::97].tolist() for one in masks.labels]
        found[f"{name}/maps"] = masks.maps.values
        found[f"{name}/cuts"] = np.array(masks.thresholds)
        found[f"{name}/shares"] = np.array([list(masks.shares(i).values()) for i in range(len(masks))])
    said = done("segment", *m.pictures, *m.asked, "--threshold", "otsu")
    for i, picture in enumerate(said["images"]):
        found[f"said/{i}/shares"] = np.array([picture["shares"][text] for text in TEXTS])
        found[f"said/{i}/threshold"] = picture["threshold"]
        for name, prompts in (("prompts", picture["prompts"]), ("together", picture["together"])):
            found[f"said/{i}/{name}"] = [one["text"] for one in prompts]
            found[f"said/{i}/{name}_boxes"] = np.array([box for one in prompts for box in one["boxes"]], float)
    found["said/areas"] = [[one["image_id"], one["category_id"], one["area"]] for one in said["coco"]["annotations"]]
    found["said/runs"] = said["coco"]["annotations"][0]["segmentation"]["counts"]
    return found


def index_numbers(m: Made) -> Found:
    store = ca.Store.open(m.store)
    moments = store.moments()
    return {
        "counts": [m.indexed["done"], m.indexed["failed"], m.indexed["images"], done("verify", m.store)["images"]],
        "ids": [row.id for row in store.rows()][::9],
        "labels": [row.label for row in store.rows()][::9],
        "captions": [row.captions[0] for row in store.rows()][::19],
        "embeddings": store.embeddings(),
        "lengths": store.norms(),
        "first_head": store.heads(0, 0).float(),
        "mlps": store.mlps(1).float(),
        "mean": moments.mean,
        "covariance": moments.covariance,
        "chunks": moments.counts.tolist(),
    }


def atlas_numbers(m: Made) -> Found:
    assert m.store
    heads = m.atlas["heads"]
    found: Found = {
        "pool_size": m.atlas["pool_texts"],
        "roles": [f"{h['layer']}.{h['head']} {h['role']['name']}" for h in heads],
        "roles_by": [[h["role"]["by_picks"], h["role"]["by_text_variance"]] for h in heads],
        "picks": [[text["text"] for text in h["texts"]] for h in heads],
        "properties": [[text["property"] for text in h["texts"][:3]] for h in heads],
        "evidence": [[seen["id"] for text in h["texts"][:1] for seen in text["top_images"][:3]] for h in heads],
        "agreement": {
            one: m.atlas["agreement"][key] for one, key in (("right", "right"), ("asked", "tested"), ("mixed", "mixed"))
        }
        if m.atlas["agreement"]
        else {},
        "sure": np.array([h["role"]["confidence"] for h in heads]),
        "explained_in_all": m.atlas["explained"],
        "truth_of_first": np.array([share for _, share in heads[0]["truth"]]),
    }
    for name, key in (
        ("variance", "variance"),
        ("rank", "rank"),
        ("explained", "explained"),
        ("ceiling", "pca_explained"),
    ):
        found[name] = np.array([h[key] for h in heads], float)
    for name, key in (("alone", "explained_alone"), ("gain", "gain"), ("margin", "margin"), ("again", "stability")):
        found[f"texts_{name}"] = np.array([text[key] for h in heads for text in h["texts"]], float)
    return found


def ablate_numbers(m: Made) -> Found:
    found: Found = {
        "mean_of_heads": ca.replace_parts(m.clip, m.pictures, "1.0,2.1", over=ca.Store.open(m.store).moments()),
        "zero_heads_mlp": ca.replace_parts(m.clip, m.pictures, "0.1+mlp=1", by="zero"),
        "zero_token": ca.replace_parts(m.clip, m.pictures, "class-to-class=all+token=2", by="zero"),
        "swapped": ca.replace_parts(m.clip, m.pictures, "layer=1", by="swap", other=m.pictures[:1]),
    }
    said = done("ablate", m.store, "--study", "layers,heads,mlps,last")["studies"]
    said += done(
        "ablate",
        m.store,
        "--select",
        "7.0,7.3" if m.name == "demo" else "2.0,2.1",
        "--by",
        "zero",
        "--group",
        "background",
    )["studies"]
    said += done("ablate", m.store, "--select", "last=3", "--by", "texts", "--pool", "world", "--texts", "5")["studies"]
    for at, one in enumerate(said):
        name = f"{at} {one['name']}"
        rows = [one["whole"], *one["effects"]]
        found |= {
            f"{name}/asked": [one["images"], one["column"], *one["classes"]],
            f"{name}/groups": [[group["name"], group["images"]] for group in one["groups"]],
            f"{name}/parts": [row["spec"].replace("input-embedding", "start") for row in rows],
            f"{name}/lost_won": [[row["lost"], row["won"]] for row in rows],
            f"{name}/accuracy": np.array([[row["accuracy"], row["class_mean"]] for row in rows]),
            f"{name}/change": np.array([row["change"] for row in rows]),
            f"{name}/by_group": np.array([row["groups"] for row in rows], float),
        }
    return found


def search_numbers(m: Made) -> Found:
    ids = [row.id for row in ca.Store.open(m.store).rows()]
    asked = {
        "by_text": ["a red bird"], "by_picture": [m.pictures[0]], "by_id": [f"id:{ids[5]}", "--heads", "colour"],
        "in_heads": [f"id:{ids[5]}", "--heads", "1.0,2.1"], "without": [f"id:{ids[5]}", "--mode", "without", "--heads", "1.0,2.1"],
        "whole": [f"id:{ids[7]}", "--mode", "whole"],
        "less": [f"id:{ids[7]}", "text:a star", "--negative", f"id:{ids[5]}"],
        "focus": [f"id:{ids[9]}", "--focus", "red|blue|green"], "where": ["a fish", "--where", "label = 'bird'"],
    }  # fmt: skip
    found: Found = {}
    for name, words in asked.items():
        said = done("search", m.store, *words, "-k", "8")
        found[f"{name}/how"] = [said["mode"], said["measure"], said["mode"] == "heads", said["images"], said["matched"]]
        found[f"{name}/heads"] = [f"{one['layer']}.{one['head']}" for one in said["heads"]]
        found[f"{name}/hits"] = [hit["id"] for hit in said["hits"]]
        found[f"{name}/scores"] = np.array([hit["score"] for hit in said["hits"]])
        found[f"{name}/shares"] = np.array([v for hit in said["hits"] for v in hit["heads"].values()], float)
    said = done("search", m.store, m.pictures[1], "--captions", "-k", "5")
    return found | {
        "captions/how": [said["measure"], True, said["texts"], len(said["heads"])],
        "captions/hits": [[hit["text"], hit["ids"][:3]] for hit in said["hits"]],
        "captions/scores": np.array([hit["score"] for hit in said["hits"]]),
        "captions/shares": np.array([hit["shares"] for hit in said["hits"]]),
    }


def repair_numbers(m: Made) -> Found:
    said, _ = m.repaired
    found: Found = {
        "silenced": said["ablated"],
        "cue": said["cue"],
        "split": [said["split"]["validation"], said["split"]["test"]],
        "groups": [[one["name"], one["images"]] for one in said["groups"]],
        "questions": [one["name"] for one in said["other_tasks"]],
        "suspects": [one["part"] for one in said["suspects"]],
        "suspect_roles": [one["role"] for one in said["suspects"]],
        "choices": [[one["strategy"], one["parts"], one["suggested"]] for one in said["candidates"]],
        "other_ways": [[one["strategy"], one["ablated"]] for one in said["alternatives"]],
    }
    tables = [said["average"], said["worst_group"], said["mean_over_groups"], *said["groups"], *said["other_tasks"]]
    names = {"before_within": "before_interval", "change_within": "change_interval"}
    for name in ("before", "after", "change", "before_within", "change_within"):
        found[name] = np.array([one[names.get(name, name)] for one in tables], float)
    for name, key in (
        ("on_name", "name"),
        ("on_cue", "cue_variance"),
        ("on_class", "class_variance"),
        ("variance", "variance"),
    ):
        found[f"suspects_{name}"] = np.array([one[key] for one in said["suspects"]], float)
    alone = [one["ablated_alone"] for one in said["suspects"]]
    found["suspects_alone"] = np.array([[one["average"], one["worst"], one["mean"]] for one in alone], float)
    found["choices_validated"] = np.array([list(map(one["validation"].get, ("average", "worst", "mean"))) for one in said["candidates"]])  # fmt: skip
    return found


def apply_numbers(m: Made) -> Found:
    edit = m.repaired[1]
    out = m.folder / "embeddings.npz"
    said = done("apply", edit, "world:24:test", "--out", str(out), *m.asked[:-2], "--batch", "8")
    kept = np.load(out)
    edited = ca.EditedClip(m.clip, ca.Edit.load(edit))
    with torch.no_grad():
        by_hand = edited.encode_image(m.clip.pixels(m.pictures))
    return {
        "told": said["edit"], "count": [said["done"], len(said["failed"])], "first": [said["first"][text] for text in TEXTS],
        "moved": said["moved"], "changed": said["changed"], "ids": kept["ids"].tolist(), "embeddings": kept["embedding"],
        "probability_before": kept["before"], "probability_after": kept["after"], "by_hand": by_hand,
    }  # fmt: skip


def probe_numbers(m: Made) -> Found:
    found: Found = {}
    asked = {
        "logistic": ["--last", "1", "--label", "background"], "ridge": ["--last", "1,2", "--method", "ridge"],
        "sgd": ["--without", "2.0,2.1", "--method", "sgd", "--epochs", "3"],
    }  # fmt: skip
    for name, words in asked.items():
        said = done("probe", m.store, *words)
        rows = said["rows"]
        found |= {
            f"{name}/classes": said["classes"],
            f"{name}/split": [said["train"], said["test"]],
            f"{name}/groups": said["images"],
            f"{name}/rows": [[row["name"], row["method"], row["worst_group"]] for row in rows],
            f"{name}/accuracy": np.array([[row["accuracy"], row["per_class"], row["worst"], row["trained"]] for row in rows]),
            f"{name}/interval": np.array([row["interval"] for row in rows]),
            f"{name}/by_group": np.array([list(row["groups"].values()) for row in rows], float),
        }  # fmt: skip
    return found


def text_numbers(m: Made) -> Found:
    found: Found = {
        "embedding": m.clip.encode_text(TEXTS),
        "prompts": m.clip.encode_text(["bird", "fish"], templates=["a photo of a {}.", "one {}"]),
        "ids": m.clip.ids(TEXTS).tolist(),
        "scale": float(m.clip.logit_scale),
    }
    for former, convention in (("own", "centered"), ("even", "official")):
        parts = ca.decompose_text(m.clip, TEXTS, convention=convention)
        pictures = m.clip.encode_image(m.pictures)
        found |= {
            f"{former}/wrote_heads": parts.heads, f"{former}/wrote_mlps": parts.mlps,
            f"{former}/wrote_start": parts.input_embedding, f"{former}/wrote_bias": parts.bias,
            f"{former}/why_heads": parts.toward(pictures).heads, f"{former}/why_tokens": parts.tokens(pictures),
        }  # fmt: skip
    words = ca.word_maps(m.clip, m.pictures, "a bird on the red water")
    return found | {
        "words": list(words.words.texts), "word_maps": words.words.values, "sentence_map": words.sentence.values,
        "rest_map": words.rest.values,
    }  # fmt: skip


def faithfulness_numbers(m: Made) -> Found:
    judged = ca.faithfulness(m.clip, m.pictures[:1], TEXTS[:2], steps=4, against="each other")
    return {"deletion": judged.deletion, "insertion": judged.insertion, "orders": list(judged.orders)}


def changed_numbers(m: Made) -> Found:
    """What will change on purpose."""
    shape = {"demo": 96, "vit": (48, 64), "resnet": 128}[m.name]
    less: dict[str, Any] = {"against": "each other"}
    found: Found = {
        f"other_size/{name}": ca.heatmap(m.clip, m.pictures, TEXTS, method=name, size=shape, **options).values
        for name, options in (("decomposition", less), ("surgery", less), ("attention", {}))
    }
    found["whole"] = ca.heatmap(m.clip, [m.wide], TEXTS, size="whole", **less).values
    # Of several texts, what they were to be compared with was ignored.
    found["surgery_against"] = ca.heatmap(m.clip, m.pictures, TEXTS, method="surgery", against="a photo").values
    found["whole_shares"] = np.array(list(ca.segment(m.clip, [m.wide], TEXTS, threshold="otsu").shares(0).values()))
    masks = ca.segment(m.clip, m.pictures, TEXTS, threshold="otsu", together=[TEXTS])
    for name in ("prompts", "together"):  # points that lay outside their mask
        each = [one["point_coords"] for i in range(len(masks)) for one in masks.entry(i)[name]]
        found[f"prompts/{name}"] = np.array([xy for one in each for xy in one], float)
    if m.name != "resnet":
        for layers in (2, 3):
            found[f"chefer_depth_{layers}"] = ca.heatmap(
                m.clip, m.pictures, TEXTS, method="chefer", layers=layers
            ).values
    return found


OF_ALL: dict[str, Callable[[Made], Found]] = {
    "check": check_numbers, "heatmap": heatmap_numbers, "segment": segment_numbers, "text": text_numbers,
}  # fmt: skip
OF_TRANSFORMERS: dict[str, Callable[[Made], Found]] = {
    **OF_ALL, "explain": explain_numbers, "index": index_numbers, "atlas": atlas_numbers, "ablate": ablate_numbers,
    "search": search_numbers, "repair": repair_numbers, "apply": apply_numbers, "probe": probe_numbers,
    "faithfulness": faithfulness_numbers,
}  # fmt: skip
VERBS = {"demo": OF_TRANSFORMERS, "vit": OF_TRANSFORMERS, "resnet": OF_ALL}
GROUPS: dict[str, tuple[str, Callable[[Made], Found]]] = {
    **{f"{name}/{verb}": (name, numbers) for name, verbs in VERBS.items() for verb, numbers in verbs.items()},
    **{f"changes/{name}": (name, changed_numbers) for name in VERBS},
}


def few(value: Any) -> np.ndarray:
    """An array as at most MOST of its entries, with its mean and its mean size at the end."""
    whole = np.asarray(value.detach() if isinstance(value, torch.Tensor) else value, np.float64).ravel()
    step = -(-len(whole) // MOST)
    step += next(more for more in range(30) if all((step + more) % p for p in (2, 3, 5))) if step > 1 else 0
    ends = [np.nanmean(whole), np.nanmean(np.abs(whole))] if len(whole) else []
    return np.array([*whole[:: max(step, 1)], *ends], np.float32)


def group_numbers(group: str, folder: Path, known: dict[str, Made]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Numbers and names of one group, by full key."""
    name, numbers = GROUPS[group]
    if name not in known:
        known[name] = Made(name, folder)
    found = {f"{group}/{key}": value for key, value in numbers(known[name]).items()}
    is_number = {key: isinstance(value, (torch.Tensor, np.ndarray, float)) for key, value in found.items()}
    return (
        {key: few(value) for key, value in found.items() if is_number[key]},
        {key: json.loads(json.dumps(value)) for key, value in found.items() if not is_number[key]},
    )


@contextlib.contextmanager
def workshop() -> Iterator[Path]:
    """A folder for models, pictures and stores, one thread, and no cache of the user's."""
    threads, cache = torch.get_num_threads(), os.environ.get("CLIP_ANATOMY_CACHE")
    with tempfile.TemporaryDirectory(prefix="golden-") as folder:
        torch.set_num_threads(1)
        os.environ["CLIP_ANATOMY_CACHE"] = str(Path(folder) / "cache")
        try:
            yield Path(folder)
        finally:
            torch.set_num_threads(threads)
            os.environ.pop("CLIP_ANATOMY_CACHE")
            if cache is not None:
                os.environ["CLIP_ANATOMY_CACHE"] = cache


def stored(folder: Path = HERE) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The numbers and names of a golden set."""
    with np.load(folder / "golden.npz") as file:
        return dict(file.items()), json.loads((folder / "golden.json").read_text())


def write(folder: Path, numbers: Mapping[str, np.ndarray], names: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "golden.npz", **dict(sorted(numbers.items())))
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in sorted(names.items()))
    (folder / "golden.json").write_text(f"{{\n{lines}\n}}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write golden.npz and golden.json.")
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--only", default="", help="groups whose name holds this")
    given = parser.parse_args()
    numbers: dict[str, np.ndarray] = {}
    names: dict[str, Any] = {}
    known: dict[str, Made] = {}
    with workshop() as folder:
        for group in (group for group in GROUPS if given.only in group):
            more, others = group_numbers(group, folder, known)
            numbers |= more
            names |= others
            print(f"{group}: {len(more)} arrays, {len(others)} names", flush=True)
    write(given.out, numbers, names)


if __name__ == "__main__":
    main()
