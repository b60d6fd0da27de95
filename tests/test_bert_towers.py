"""BERT-like text towers, whose norms stand in the stream: split into heads, MLPs and embedding, equal to autograd on the host's own graph."""

import copy
from typing import Any

import open_clip
import pytest
import torch
import transformers
from test_text_towers import BERT, CONFIGS, with_text
from tiny_transformers import tiny_transformers
from torch import Tensor, nn

import clip_anatomy as ca
from clip_anatomy.split.basis import basis_of, coordinates_of
from clip_anatomy.split.parts import decompose_tower
from clip_anatomy.towers.split_kind import split_kind

pytestmark = pytest.mark.usefixtures("one_thread")
OPEN_CLIP = {
    "roberta": "mean_pooler",
    "xlm-roberta": "cls_last_hidden_state_pooler",
    "bert": "mean_pooler",
}
TRANSFORMERS = ("ChineseCLIPModel", "AltCLIPModel", "AltCLIPTextModel", "AlignModel", "BlipForImageTextRetrieval")
CONFIGS["bert"] = lambda: transformers.BertConfig(**BERT, pad_token_id=0)


@pytest.fixture(scope="module", params=[*OPEN_CLIP, *TRANSFORMERS])
def model(request: Any) -> Any:
    if request.param in OPEN_CLIP:
        return with_text(request.param, hf_pooler_type=OPEN_CLIP[request.param], hf_proj_type="linear")
    return tiny_transformers(request.param)


@pytest.fixture(scope="module")
def clip(model: Any) -> Any:
    return ca.load(model)


@pytest.fixture(scope="module")
def ids(clip: Any) -> Tensor:
    found = torch.randint(3, 50, (3, 9), generator=torch.Generator().manual_seed(0))
    found[1, 5:] = clip.text_tower.embedding.pad
    return found


def encoded(model: Any, ids: Tensor, pad: int) -> Tensor:
    """What the library makes of texts, by its own words."""
    mask = (ids != pad).long()
    if hasattr(model, "encode_text"):
        return model.encode_text(ids)
    if hasattr(model, "get_text_features"):
        found = model.get_text_features(input_ids=ids, attention_mask=mask)
        return getattr(found, "pooler_output", found)
    if hasattr(model, "text_proj"):
        return model.text_proj(model.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state[:, 0])
    return model(input_ids=ids, attention_mask=mask).pooler_output


def derivatives(model: Any, ids: Tensor, pad: int, heads: int) -> dict[str, Tensor]:
    """What heads, MLPs and embedding add to the text's embedding, as autograd finds it on the host's own graph in double precision.

    Each of these is a constant times 1 + ε; attention, values and neurons are constants, and so is 1/σ of every LayerNorm. The
    derivative by ε then is the part.
    """
    frozen = copy.deepcopy(model).double().requires_grad_(False)
    text = next(
        one for one in frozen.modules() if hasattr(one, "embeddings") and hasattr(one.embeddings, "word_embeddings")
    )
    layers = getattr(text.encoder, "layer", None) or text.encoder.layers
    eps = {"heads": torch.zeros(len(layers), heads), "mlps": torch.zeros(len(layers)), "start": torch.zeros(1)}
    eps = {name: e.double().requires_grad_() for name, e in eps.items()}

    def held(norm: nn.LayerNorm) -> Any:
        def forward(x: Tensor) -> Tensor:
            centred = x - x.mean(-1, keepdim=True)
            inverse = (centred.square().mean(-1, keepdim=True) + norm.eps).rsqrt().detach()
            return centred * inverse * norm.weight + norm.bias

        return forward

    for one in frozen.modules():
        if isinstance(one, nn.LayerNorm):
            one.forward = held(one)
    text.embeddings.LayerNorm.register_forward_pre_hook(lambda _, given: given[0].detach() * (1 + eps["start"]))
    for at, layer in enumerate(layers):

        def scaled(_: Any, given: Any, at: int = at) -> Tensor:
            each = given[0].detach().unflatten(-1, (heads, -1)) * (1 + eps["heads"][at])[:, None]
            return each.flatten(-2)

        layer.attention.output.dense.register_forward_pre_hook(scaled)
        layer.output.dense.register_forward_hook(lambda _, __, out, at=at: out.detach() * (1 + eps["mlps"][at]))
    found: dict[str, list[Tensor]] = {name: [] for name in eps}
    for row in ids:
        embedding = encoded(frozen, row[None], pad)[0]
        grads = [torch.autograd.grad(one, list(eps.values()), retain_graph=True) for one in embedding]
        for name, each in zip(eps, zip(*grads, strict=True), strict=True):
            found[name].append(torch.stack(each, -1))
    return {name: torch.stack(each) for name, each in found.items()}


def test_heads_mlps_and_embedding_are_what_autograd_finds(model: Any, clip: Any, ids: Tensor) -> None:
    tower = clip.text_tower
    mlp = "; through the mean of the words" if tower.pool == "mean" else ""
    assert split_kind(tower) == f"every block, 2 × 2 heads{mlp}"
    parts = ca.decompose_text(clip, ids)
    with torch.no_grad():
        expected = encoded(model, ids, tower.embedding.pad)
    torch.testing.assert_close(clip.encode_text(ids), expected, atol=1e-5, rtol=1e-4)
    assert float((parts.total() - expected).norm() / expected.norm()) < 1e-5
    known = derivatives(model, ids, tower.embedding.pad, tower.heads)
    for name, ours in (("heads", parts.heads), ("mlps", parts.mlps), ("start", parts.input_embedding[:, None])):
        assert float((ours - known[name]).norm() / known[name].norm()) < 1e-5, name
        assert float(known[name].norm(dim=-1).min()) > 1e-3


def test_words_frames_and_the_official_sharing_agree(clip: Any, ids: Tensor) -> None:
    tower, parts = clip.text_tower, ca.decompose_text(clip, ids)
    towards = torch.randn(4, tower.embed, generator=torch.Generator().manual_seed(1))
    tokens = parts.tokens(towards)
    torch.testing.assert_close(tokens.sum(3), parts.toward(towards).heads, atol=1e-6, rtol=1e-4)
    assert float(tokens[1, :, :, 5:].abs().max()) == 0  # nothing is read from padding
    basis = basis_of(tower)
    assert basis.d == min(tower.d, tower.embed)
    again = basis.restore(coordinates_of(basis, tower, parts.trace)) * parts.embedding.norm(dim=-1)[:, None, None, None]
    torch.testing.assert_close(again.float(), parts.heads, atol=1e-5, rtol=1e-4)
    official = decompose_tower(tower, ids, "official")
    assert float(official.residue.max()) < 1e-5


def test_a_bert_read_through_a_tanh_is_one_part_and_says_so() -> None:
    clip = ca.load(with_text("bert", hf_pooler_type="cls_pooler", hf_proj_type="linear"))
    assert split_kind(clip.text_tower) == "one part, not split: its pooling is a ClsPooler that is no sum"


def test_open_clips_own_coca_config_with_roberta_is_split() -> None:
    given = open_clip.get_model_config("coca_roberta-ViT-B-32")["text_cfg"]
    assert given["hf_proj_type"] == "linear"
    text = {k: v for k, v in given.items() if k in ("hf_proj_type", "hf_pooler_type")}
    clip = ca.load(with_text("roberta", **text))
    assert split_kind(clip.text_tower) == "every block, 2 × 2 heads; through the mean of the words"


def test_a_mean_of_words_in_double_precision_is_exact_to_its_last_digits() -> None:
    model = with_text("roberta", hf_pooler_type="mean_pooler", hf_proj_type="linear").double()
    assert ca.load(model).proof.holds  # each precision is compared with its own rounding
