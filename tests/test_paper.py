"""The published Waterbirds protocol: its lists, its arithmetic against a brute-force one, and one command on a real B/16 architecture."""

import json
from dataclasses import replace

import miniatures as mini
import pytest
import torch
from tiny import open_clip_model

import clip_anatomy as ca
from clip_anatomy.cli.main import main
from clip_anatomy.data.open_dataset import open_dataset
from clip_anatomy.data.waterbirds import CLASSES, GROUPS
from clip_anatomy.errors import BadInput, BadSpec, StoreError
from clip_anatomy.loading.imagenet_texts import imagenet_templates
from clip_anatomy.store.index import index
from clip_anatomy.store.store import Store
from clip_anatomy.studies.waterbirds_protocol import paper_heads_of, paper_protocol, run_protocol
from clip_anatomy.studies.waterbirds_table import LATE, PAPER, paper_heads


@pytest.mark.parametrize("name", list(PAPER))
def test_the_lists_fit_the_architectures_they_are_of(name):
    """open_clip's own configurations say how many layers and heads there are; its own tags, which weights."""
    import open_clip

    one, config = PAPER[name], open_clip.get_model_config(name)
    vision = config["vision_cfg"]
    heads = vision["width"] // vision.get("head_width", 64)
    assert (one.layers, one.heads, one.d) == (vision["layers"], heads, vision["width"] // heads)
    assert one.patch == vision["patch_size"]
    assert one.weights in open_clip.list_pretrained_tags_by_model(name)
    for layer, head in one.both:  # a head outside the kept layers would be ablated anyway: the list would be misread
        assert one.layers - LATE <= layer < one.layers
        assert 0 <= head < one.heads
    assert {*one.both} == {*one.location} | {*one.setting}  # (22, 12) of L/14 stands in both
    assert paper_heads(one.layers, one.heads, one.d, one.patch) is one


def test_a_model_without_a_list_is_refused():
    with pytest.raises(BadSpec, match=r"names heads of ViT-B-16, ViT-L-14, ViT-H-14; this model has 12 layers"):
        paper_heads(12, 12, 64, 32)  # B/32 has as many heads, but other ones
    with pytest.raises(BadSpec, match="model='open_clip:ViT-B-16/laion2b_s34b_b88k'"):
        paper_heads_of(ca.load("demo"))


class Brute:
    """The protocol from its definition: every part as a vector of the joint space, means put in, everything added up."""

    def __init__(self, clip, images):
        unit = torch.nn.functional.normalize
        prompts = [clip.encode_text([t.format(name) for t in imagenet_templates()]) for name in CLASSES]
        self.texts = torch.stack([unit(unit(one, dim=-1).double().mean(0), dim=0) for one in prompts])
        parts = ca.decompose(clip, images, "official")
        length = parts.embedding.norm(dim=-1).double()
        self.heads = parts.heads.double() / length[:, None, None, None]
        self.rest = (parts.mlps.sum(1) + parts.input_embedding).double() / length[:, None]
        self.whole = (parts.embedding.double() / length[:, None]) @ self.texts.T

    def scores(self, ablated, layers_kept):
        each = self.heads.clone()
        for layer in range(each.shape[1]):
            for head in range(each.shape[2]):
                if layer not in layers_kept or (layer, head) in ablated:
                    each[:, layer, head] = each[:, layer, head].mean(0)
        return (each.sum((1, 2)) + self.rest.mean(0)) @ self.texts.T


def accuracies(scores, source):
    pictures = list(source)
    right = scores.argmax(1) == torch.tensor([CLASSES.index(p.label) for p in pictures])
    by = {g: right[[at for at, p in enumerate(pictures) if p.group == g]].double().mean().item() for g in GROUPS}
    return by, right.double().mean().item()


def real(name):
    """A published architecture with random weights."""
    import open_clip

    torch.set_num_threads(1)
    state = torch.get_rng_state()
    torch.manual_seed(0)
    model = open_clip.create_model(name, pretrained=None).eval()
    torch.set_rng_state(state)
    return ca.load(model, parity=False, tokenizer=open_clip.SimpleTokenizer(context_length=77))


@pytest.mark.parametrize(
    "name",
    ["ViT-B-16", pytest.param("ViT-L-14", marks=pytest.mark.slow), pytest.param("ViT-H-14", marks=pytest.mark.slow)],
)
def test_the_protocol_runs_on_the_real_architectures_and_equals_brute_force(name, tmp_path):
    model, published = real(name), PAPER[name]
    each = 2 if name == "ViT-B-16" else 1
    mini.waterbirds(tmp_path / "w", each=each)
    source = open_dataset(f"waterbirds:{tmp_path / 'w'}:test:partial")
    index(model, source, tmp_path / "s", layers="last:4", convention="official")
    found = paper_protocol(Store.open(tmp_path / "s", model), model)
    assert found.images == dict.fromkeys(GROUPS, each)
    assert found.published is published
    assert found.convention == "official"
    brute = Brute(model, [tmp_path / "w" / p.path for p in source])
    for row, heads in (
        (found.late, ()),
        (found.location, published.location),
        (found.setting, published.setting),
        (found.after, published.both),
    ):
        scores = brute.scores(heads, range(published.layers - LATE, published.layers))
        gap = (scores[:, 0] - scores[:, 1]).abs()
        assert gap.min() > 1e-5, "the random model cannot decide: other seed"
        assert (row.groups, row.average) == accuracies(scores, source)
    assert (found.before.groups, found.before.average) == accuracies(brute.whole, source)
    said = found.to_dict()
    assert json.loads(json.dumps(said))["rows"]["after"]["worst"] == found.after.worst
    assert "waterbird on land" in found.table()
    assert found.before.worst == min(found.before.groups.values())
    assert any(f"picked on {published.spec}" in one for one in found.notes)
    assert any(f"{4 * each} test images" in one for one in found.notes)


# ---- what goes wrong, with a tiny model and a list of its own


@pytest.fixture(scope="module")
def small():
    torch.set_num_threads(1)
    model = open_clip_model(layers=5, heads=2, d=8, text={"context_length": 77, "vocab_size": 49408})
    import open_clip

    return ca.load(model, parity=False, tokenizer=open_clip.SimpleTokenizer(context_length=77))


LIST = replace(PAPER["ViT-B-16"], layers=5, heads=2, d=8, patch=8, location=((4, 1),), setting=((3, 0), (2, 1)))


def test_any_list_equals_brute_force_and_the_means_are_of_the_images_measured(small, tmp_path):
    mini.waterbirds(tmp_path / "w", each=6)
    index(
        small, f"waterbirds:{tmp_path / 'w'}:partial", tmp_path / "s", convention="official"
    )  # all splits, all layers
    store = Store.open(tmp_path / "s", small)
    test = open_dataset(f"waterbirds:{tmp_path / 'w'}:test:partial")
    brute = Brute(small, [tmp_path / "w" / p.path for p in test])
    steps = []
    found = paper_protocol(store, small, published=LIST, progress=lambda *step: steps.append(step))
    assert (found.after.groups, found.after.average) == accuracies(brute.scores(LIST.both, range(1, 5)), test)
    assert (found.before.groups, found.before.average) == accuracies(brute.whole, test)
    assert steps[-1] == ("heads", 8, 8)
    assert found == paper_protocol(store, small, published=LIST)
    own = paper_protocol(store, small, published=LIST, split="val")
    assert own.images == dict.fromkeys(GROUPS, 6)


def test_what_cannot_be_measured_is_named(small, tmp_path):
    root = mini.waterbirds(tmp_path / "w", each=1)
    index(small, f"waterbirds:{root}:partial", tmp_path / "few", layers="last:2")
    with pytest.raises(StoreError, match=r"lacks layers \[1, 2\]; the protocol needs 1-4. Type: clip-anatomy index"):
        paper_protocol(Store.open(tmp_path / "few"), small, published=LIST)
    index(small, "world:5:test", tmp_path / "world")
    with pytest.raises(BadInput, match="not a store of Waterbirds"):
        paper_protocol(Store.open(tmp_path / "world"), small, published=LIST)
    table = root / "metadata.csv"
    table.write_text("\n".join(line for line in table.read_text().splitlines() if ",1,2,0," not in line))
    index(small, f"waterbirds:{root}:partial", tmp_path / "gone")
    with pytest.raises(BadInput, match="no test image of waterbird on land"):
        paper_protocol(Store.open(tmp_path / "gone"), small, published=LIST)
    other = ca.load(open_clip_model(layers=5, heads=2, d=8, seed=1), parity=False)
    with pytest.raises(StoreError, match="was made with"):
        paper_protocol(Store.open(tmp_path / "gone"), other, published=LIST)
    index(small, f"waterbirds:{mini.waterbirds(tmp_path / 'v', each=1)}:partial", tmp_path / "own")
    assert any(
        "convention='official'" in n for n in paper_protocol(Store.open(tmp_path / "own"), small, published=LIST).notes
    )


def test_the_command_refuses_before_it_works(tmp_path, capsys):
    root = mini.waterbirds(tmp_path / "w", each=1)
    with pytest.raises(BadSpec, match="Type protocol='paper'"):
        run_protocol(str(root), "poster")
    with pytest.raises(BadSpec, match="is of three models. Type model= with one of: open_clip:ViT-B-16/"):
        run_protocol(f"waterbirds:{root}:partial", out=tmp_path / "out")
    with pytest.raises(BadSpec, match="names heads of ViT-B-16"):
        run_protocol(f"waterbirds:{root}:partial", model="demo", out=tmp_path / "out")
    with pytest.raises(BadInput, match="is to be had from its authors"):
        run_protocol(str(tmp_path / "nowhere"), model="demo", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_one_command_from_pictures_and_weights_to_the_table(tmp_path, capsys):
    """As a person with the weights types it: the weights here are random, the architecture is the real one."""
    import open_clip
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file(dict(open_clip.create_model("ViT-B-16", pretrained=None).state_dict()), tmp_path / "b16.safetensors")
    root = mini.waterbirds(tmp_path / "w", each=2)
    words = ["repair", f"waterbirds:{root}:partial", "--protocol", "paper", "--model", "open_clip:ViT-B-16"]
    words += ["--weights", str(tmp_path / "b16.safetensors"), "--out", str(tmp_path / "out")]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "without both (the protocol)" in said
    first = json.loads((tmp_path / "out/paper.json").read_text())
    assert set(first["images"]) == set(GROUPS)
    assert main(["repair", str(tmp_path / "out/store"), *words[2:6], "--weights", words[7], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == first["rows"]
