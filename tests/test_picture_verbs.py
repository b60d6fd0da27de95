"""What `explain`, `heatmap` and `segment` take alike: prompts, files of texts, sizes, no picture files; and how many pictures are shown."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import clip_anatomy as ca
from clip_anatomy.atomic_output import slug
from clip_anatomy.cli.main import main
from clip_anatomy.errors import BadText
from clip_anatomy.loading.demo import examples
from clip_anatomy.loading.typed_texts import read_templates, read_texts

pytestmark = pytest.mark.usefixtures("one_thread")
CLIP = ca.load("demo", parity=False)
VERBS = ["explain", "heatmap", "segment"]
TEMPLATES = ["a picture of {}", "{} on a wall"]


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    path = tmp_path / "wide.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 128, 3), np.uint8)).save(path)
    return path


def printed(argv: list[Any], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main([*map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("verb", VERBS)
def test_files_of_texts_and_standard_input(verb: str, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    (tmp_path / "texts.txt").write_text("a bird\n\n the sky \n")
    (tmp_path / "list").write_text("a star")
    monkeypatch.setattr(sys, "stdin", io.StringIO("a moon\n"))
    typed = ["--texts", tmp_path / "texts.txt", "-t", f"@{tmp_path}/list", "-t", "@-", "-t", "@home"]
    found = printed([verb, examples()[0], *typed], capsys)
    assert [text["text"] for text in found["texts"]] == ["a bird", "the sky", "a star", "a moon", "@home"]
    assert main([verb, str(examples()[0]), "--texts", "@nothing.txt"]) == 2
    assert "nothing.txt cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("verb", VERBS)
def test_prompts_and_sizes_are_those_of_python(verb: str, wide: Path, capsys: Any) -> None:
    typed = [
        verb,
        wide,
        "-t",
        "a bird",
        "-t",
        "the sky",
        "--size",
        "whole",
        *(f"--template={one}" for one in TEMPLATES),
    ]
    found = printed(typed, capsys)
    here = getattr(ca, verb)(CLIP, wide, ["a bird", "the sky"], templates=TEMPLATES, size="whole").to_dict()
    key = {"explain": "texts", "heatmap": "maps", "segment": "shares"}[verb]
    assert found["images"][0][key] == here["images"][0][key]
    assert found != printed(typed[:8], capsys)


def test_explain_through_prompts_and_whole_sums_to_the_cosine_of_averaged_prompts(wide: Path) -> None:
    found = ca.explain(CLIP, wide, ["a bird"], templates=TEMPLATES, size="whole")
    assert found[0].patches.shape[:2] == (8, 16)
    torch.testing.assert_close(found[0].total, found[0].cosine.double(), atol=1e-6, rtol=0)
    prompts = torch.nn.functional.normalize(CLIP.encode_text(["a picture of a bird", "a bird on a wall"]), dim=-1)
    pixels = CLIP.pixels(Image.open(wide).crop((0, 0, 64, 64)))
    one = ca.explain(CLIP, pixels, ["a bird"], templates=TEMPLATES)
    image = torch.nn.functional.normalize(CLIP.encode_image(pixels), dim=-1)
    torch.testing.assert_close(
        one[0].cosine, image[0] @ torch.nn.functional.normalize(prompts.mean(0), dim=0)[:, None], atol=1e-6, rtol=0
    )
    assert found.to_dict()["templates"] == TEMPLATES
    assert found.to_dict()["size"] == "whole"


def test_imagenet_is_the_recipe() -> None:
    assert read_templates("imagenet") == read_templates(["imagenet"]) == tuple(ca.imagenet_templates())
    assert read_templates(None) is read_templates([]) is None


@pytest.mark.parametrize("verb", VERBS)
def test_no_pictures_leaves_the_page_and_the_numbers(verb: str, tmp_path: Path, capsys: Any) -> None:
    argv = [verb, str(examples()[0]), "-t", "a bird", "--out"]
    assert main([*argv, str(tmp_path / "all")]) == 0
    assert main([*argv, str(tmp_path / "few"), "--no-pictures"]) == 0
    every, few = ({path.name for path in (tmp_path / one).iterdir()} for one in ("all", "few"))
    assert few == {name for name in every if not name.endswith(("png", "jpg")) or "-mask" in name}
    page = (tmp_path / "few/index.html").read_text()
    assert page == (tmp_path / "all/index.html").read_text()
    assert "data:image" in page
    getattr(ca, verb)(CLIP, examples()[:1], ["a bird"]).save(tmp_path / "python", pictures=False)
    assert {path.name for path in (tmp_path / "python").iterdir()} == few - {"run.json"}


def test_many_pictures_are_a_list_with_cards_on_demand_and_drawn_when_asked_for(tmp_path: Path, capsys: Any) -> None:
    folder = examples()[0].parent
    texts = [word for one in ("a bird", "the sky", "a red circle", "a moon") for word in ("-t", one)]
    assert main(["explain", str(folder), *texts, "--out", str(tmp_path / "r")]) == 0
    said = capsys.readouterr()
    count = len(examples())
    assert f"no picture files for {4 * count} pairs of picture and text; --pictures draws them" in said.err
    assert [line.split()[0] for line in said.out.splitlines() if ".png" in line] == [path.name for path in examples()]
    assert not list((tmp_path / "r").glob("*.png"))
    page = (tmp_path / "r/index.html").read_text()
    assert page.count('<details class="one"') == count
    assert page.count('href="#picture-') == 2 * count
    assert '<details class="one" open' not in page
    ca.explain(CLIP, examples()[:1], ["a bird"]).save(tmp_path / "one")
    assert 'class="one"' not in (tmp_path / "one/index.html").read_text()


def test_names_of_files_keep_every_script(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "Bärenjagd 犬.png")
    found = ca.heatmap(CLIP, tmp_path / "Bärenjagd 犬.png", ["ein Bär", "हिन्दी"])
    found.save(tmp_path / "out")
    assert {"000-bärenjagd-犬-00-ein-bär", "000-bärenjagd-犬-01-हिन्दी"} <= {
        p.stem for p in (tmp_path / "out").iterdir()
    }
    assert slug("e\u0301te\u0301") == "\u00e9t\u00e9"  # composed, as people type it
    assert len(slug("漢" * 400).encode()) == 60
    assert slug("../..//\0") == "x"


def test_texts_that_only_look_like_files() -> None:
    assert read_texts(["a dog.", "@you and me", "-"]) == ["a dog.", "@you and me", "-"]
    with pytest.raises(BadText, match=r"holds no text|cannot be read"):
        read_texts(["missing.txt"])
