"""The text tower: explanations of a sentence, heads named by texts and by pictures, parts replaced in class texts."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import clip_anatomy as ca
from clip_anatomy.cli.main import main
from clip_anatomy.data.world.attribute_names import SHAPES
from clip_anatomy.errors import BadInput, BadSpec, BadText
from clip_anatomy.loading.demo import examples
from clip_anatomy.naming.text_explanation import text_moments
from clip_anatomy.naming.textspan import textspan
from clip_anatomy.studies.text_ablation import class_parts

pytestmark = pytest.mark.usefixtures("one_thread")
SENTENCE = "a dotted purple bird in the sky"


@pytest.fixture(scope="module")
def clip() -> ca.Clip:
    return ca.load("demo")


@pytest.fixture(scope="module")
def found(clip: ca.Clip) -> ca.TextExplanation:
    return ca.explain_text(clip, SENTENCE, examples(), texts=["a bird", "a fish"])


@pytest.fixture(scope="module")
def store(clip: ca.Clip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts") / "store"
    ca.index(clip, "world:120:test", folder)
    return folder


def test_words_heads_and_the_rest_sum_to_each_cosine(clip: ca.Clip, found: ca.TextExplanation) -> None:
    shares, unit = found.shares, F.normalize(clip.encode_text([SENTENCE]), dim=-1)
    texts = {"a bird": 0, "a fish": 1}
    host = F.normalize(clip.encode_text(list(texts)), dim=-1) @ unit[0]
    for name, at in texts.items():
        assert float(shares.cosine[found.targets.index(name)]) == pytest.approx(float(host[at]), abs=1e-5)
    assert shares.residue.abs().max() < 1e-5
    assert torch.allclose(found.by_word.sum(0) + shares.class_token, shares.heads.sum((0, 1)), atol=1e-5)
    assert found.words == ("a", "dotted", "purple", "bird", "in", "the", "sky")
    assert shares.cosine.tolist() == sorted(shares.cosine.tolist(), reverse=True)


def test_words_are_those_of_pairs(clip: ca.Clip, found: ca.TextExplanation) -> None:
    """Another route through the same split: pairs of the sentence with a picture, summed over all of the picture."""
    table = ca.pairs(clip, examples()[0], SENTENCE).table("tokens")
    at = found.targets.index(str(examples()[0]))
    assert torch.allclose(table[:, : len(found.words)].sum(0).float(), found.by_word[:, at], atol=1e-5)


def test_nothing_to_compare_with_takes_the_nearest_texts(clip: ca.Clip) -> None:
    alone = ca.explain_text(clip, SENTENCE)
    others = F.normalize(clip.encode_text(["a brick wall", "the number 4"]), dim=-1) @ F.normalize(
        clip.encode_text([SENTENCE])[0], dim=-1
    )
    assert len(alone.targets) == 6
    assert float(alone.shares.cosine.min()) > float(others.max())
    assert any("nearest" in note for note in alone.notes)


def test_heads_are_named_by_textspan_over_texts(clip: ca.Clip, found: ca.TextExplanation) -> None:
    texts = ["a red bird", "a blue fish", "a star", "grass", "one circle", "two circles"]
    moments = text_moments(clip, texts)
    whole = ca.Moments.of(ca.decompose_text(clip, texts))
    basis = moments.basis
    assert basis is not None
    mean = torch.einsum("lhd,lhde->lhe", moments.mean, basis.rows)
    assert torch.allclose(mean, whole.mean, atol=1e-6)
    picks = textspan(moments, F.normalize(clip.encode_text(texts), dim=-1), 2)
    same = textspan(whole, F.normalize(clip.encode_text(texts), dim=-1), 2)
    assert torch.equal(picks.indices[..., 0], same.indices[..., 0])
    assert set(found.names) == {
        f"{layer}.{head}" for layer in range(clip.text_tower.layers) for head in range(clip.text_tower.heads)
    }
    assert all(len(said) >= 1 for said in found.names.values())
    assert not found.by_pictures  # six pictures say nothing


def test_heads_are_named_by_pictures_where_there_are_enough(clip: ca.Clip) -> None:
    named = ca.explain_text(clip, "a bird", examples() * 3)
    assert all(one in named.targets for pictures in named.by_pictures.values() for one in pictures)
    assert named.by_pictures


def test_what_is_no_sentence_is_refused(clip: ca.Clip) -> None:
    with pytest.raises(BadText, match="holds no word"):
        ca.explain_text(clip, "  ")


def test_page_figure_and_numbers(found: ca.TextExplanation, tmp_path: Path) -> None:
    found.save(tmp_path / "out")
    assert {one.name for one in (tmp_path / "out").iterdir()} == {"index.html", "explain-text.png", "explain-text.json"}
    page = (tmp_path / "out" / "index.html").read_text()
    assert "dotted" in page
    assert "<script>" not in page
    told = json.loads((tmp_path / "out" / "explain-text.json").read_text())
    row = told["targets"][0]
    heads = sum(sum(layer) for layer in row["heads"])
    assert sum(value for _, value in row["words"]) + row["start_and_end_marks"] == pytest.approx(heads, abs=1e-5)
    assert row["cosine"] == pytest.approx(row["sum"], abs=1e-5)
    assert "dotted" in repr(found)


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["explain", "--text", "a red circle", "--text", "a circle", "--text-tower", "--out", str(tmp_path / "o")])
        == 0
    )
    assert "word by word" in capsys.readouterr().out
    assert (tmp_path / "o" / "index.html").is_file()
    assert main(["explain", "--text-tower"]) == 2


# ---- parts of the text tower replaced in class texts


def test_class_parts_sum_to_the_class_embeddings(clip: ca.Clip) -> None:
    prompts = [["a bird", "a photo of a bird", "here we see a bird"], ["a fish"]]
    units = [F.normalize(F.normalize(clip.encode_text(some), dim=-1).mean(0), dim=-1) for some in prompts]
    assert torch.allclose(class_parts(clip, prompts).total(), torch.stack(units), atol=1e-5)


def test_replaced_heads_of_the_text_tower_longhand(clip: ca.Clip, store: Path) -> None:
    """Every class text without one head, taken apart and put together by hand, against the images as stored."""
    study = ca.study(store, "heads", clip=clip, tower="text")
    assert study.title == "One head at a time (text tower)"
    assert len(study.effects) == clip.text_tower.layers * clip.text_tower.heads
    question = ca.study(store, "layers", clip=clip)
    assert study.whole.accuracy == question.whole.accuracy
    from clip_anatomy.data.world.accuracy import prompts
    from clip_anatomy.studies.zero_shot_task import ablation_task

    opened = ca.Store.open(store)
    task = ablation_task(opened, lambda: clip)
    rows = []
    layer, head = clip.text_tower.layers - 1, 2
    for some in prompts("shape"):
        parts = ca.decompose_text(clip, some)
        length = parts.embedding.norm(dim=-1, keepdim=True)
        mean = (parts.embedding / length).mean(0)
        rows.append((mean / mean.norm(), (parts.heads[:, layer, head] / length).mean(0) / mean.norm()))
    whole, wrote = (torch.stack(one) for one in zip(*rows, strict=True))
    without = whole - wrote + wrote.mean(0)
    images = opened.embeddings(task.rows, unit=True)
    right = ((images @ without.T).argmax(1) == task.labels).float().mean()
    effect = study.effects[layer * clip.text_tower.heads + head]
    assert effect.description == f"head {layer}.{head}"
    assert effect.accuracy == pytest.approx(float(right), abs=1e-6)


def test_all_parts_by_zero_leave_nothing_to_tell_classes_apart(clip: ca.Clip, store: Path) -> None:
    everything = f"layer=0-{clip.text_tower.layers - 1}+mlp=all+input-embedding"
    for by in ("mean", "zero"):
        study = ca.study(store, select=[everything], clip=clip, tower="text", by=by)
        assert study.whole.accuracy > 0.8
        assert study.effects[0].accuracy < 0.3  # twelve classes


def test_what_only_the_image_tower_has_is_refused(clip: ca.Clip, store: Path) -> None:
    for options in (
        {"name": "class-to-class"},
        {"effect": "rerun"},
        {"by": "texts"},
        {"by": "swap", "other": 0},
        {"select": ["role=colour"]},
    ):
        with pytest.raises(BadSpec, match="is for the image tower"):
            ca.study(store, clip=clip, tower="text", **options)  # pyright: ignore
    with pytest.raises(BadSpec, match="tower='both' is not known"):
        ca.study(store, clip=clip, tower="both")
    with pytest.raises(BadInput, match="made elsewhere"):
        ca.study(
            store,
            clip=clip,
            tower="text",
            classes=SHAPES,
            texts=torch.eye(len(SHAPES), clip.vision.embed),
        )
    with pytest.raises(BadInput):
        ca.study(store, clip=clip, tower="text", select=["99.0"])
