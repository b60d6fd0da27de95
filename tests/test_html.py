"""Whatever a text, a file, a note or a class is called, every page shows it as text; and no page is made outside of the templates."""

import ast
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
from pages import Reader, read
from PIL import Image

import clip_anatomy
from clip_anatomy.images.pixels import OPENAI_MEAN, OPENAI_STD, Preprocess
from clip_anatomy.loading.typed_texts import TypedText
from clip_anatomy.maps.map_result import Maps
from clip_anatomy.maps.map_set import MapSet
from clip_anatomy.naming.atlas import Atlas, AtlasHead, AtlasImage, AtlasText, PoolRound
from clip_anatomy.naming.roles import Role
from clip_anatomy.report.atlas_pages import head_page, index_page
from clip_anatomy.report.contact_sheet import Cell
from clip_anatomy.report.explain_page import ExplainedPicture, explain_page
from clip_anatomy.report.html import framed, notebook_figures
from clip_anatomy.report.maps_page import maps_page, maps_section, masks_page, masks_section
from clip_anatomy.report.search_page import search_page
from clip_anatomy.report.search_pictures import ResultPicture
from clip_anatomy.report.shown_picture import view_of
from clip_anatomy.retrieval.automatic_heads import ChosenHead
from clip_anatomy.retrieval.hits import Hit
from clip_anatomy.retrieval.query import Query
from clip_anatomy.retrieval.ranking import Ranking
from clip_anatomy.retrieval.subspace import Space
from clip_anatomy.split.picture_explanation import PictureExplanation
from clip_anatomy.store.rows import ImageRow
from clip_anatomy.store.store import Store

SOURCES = Path(clip_anatomy.__file__).parent
TAGS = r"</(a|b|i|p|h\d|div|span|pre|table|tr|td|li|ul|ol|dl|figure|section|iframe|script|style)>|<(img|iframe|div|span|a) "
NASTY = "</style></script><img src=x onerror=bad>\" onload='b' & {{7*7}}"
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8))
WHERE = Preprocess((32, 32), OPENAI_MEAN, OPENAI_STD).geometry(60, 40)
PICTURE = view_of(IMAGE, NASTY, WHERE)
QUESTIONS = [TypedText(NASTY, (NASTY,)), TypedText(f"2 {NASTY}")]
AROUND: dict[str, Any] = {"notes": [NASTY], "failed": [(NASTY, NASTY)], "facts": [(NASTY, NASTY)]}


def harmless(html: str, times: int, *, scripts: int = 1) -> Reader:
    """A page whose strange texts are texts: nothing of them became a tag, an attribute or an instruction."""
    reader = read(html)
    assert reader.open == []
    assert reader.tags.count("script") == scripts
    assert reader.tags.count("style") == 1
    assert not [name for name, _ in reader.attributes if name.startswith("on")]
    assert "x" not in reader.loads
    assert reader.text.count(NASTY) >= times, "every one of them can be read"
    assert "49" not in re.findall(r"\b49\b", reader.text)
    return reader


def split_cosines() -> PictureExplanation:
    texts = len(QUESTIONS)
    made = torch.Generator().manual_seed(0)
    shapes = {"heads": (3, 2), "mlps": (3,), "input_embedding": (), "bias": (), "patches": (4, 4), "class_token": ()}
    parts: dict[str, Any] = {name: torch.randn(*shape, texts, generator=made) for name, shape in shapes.items()}
    return PictureExplanation(torch.tensor([0.3, 0.1]), torch.tensor([0.9, 0.1]), **parts)


def test_explain() -> None:
    explained = [ExplainedPicture(PICTURE, split_cosines(), NASTY)]
    page = explain_page(NASTY, explained, QUESTIONS, [(NASTY, NASTY)], notes=[NASTY], failed=[(NASTY, NASTY)])
    harmless(page, 12)


def test_heatmap_and_segment() -> None:
    maps = Maps(torch.randn(1, 2, 4, 4), "decomposition", (NASTY, "2"), (WHERE,))
    words = replace(maps, values=torch.randn(1, 3, 4, 4), texts=(NASTY, NASTY, "(rest)"), method="words")
    found = MapSet((replace(maps, method=NASTY),), (maps, maps), (words,))
    section = maps_section(PICTURE, found, "signed")
    harmless(maps_page(NASTY, [section], "signed", **AROUND), 7)
    section = masks_section(np.ones((40, 60), np.int16), NASTY, [Cell(IMAGE, NASTY)])
    page = masks_page(NASTY, [section], QUESTIONS, [(1, 2, 3), (4, 5, 6)], **AROUND)
    harmless(page, 7, scripts=0)


def test_atlas() -> None:
    image = AtlasImage(0, NASTY, NASTY, 0.1)
    text = AtlasText(NASTY, NASTY, 0.2, 0.2, 0.2, NASTY, 0.1, 0.5, 0.5, (image,), (image,))
    role = Role(NASTY, 0.5, ((NASTY, 0.4),), NASTY, NASTY, NASTY, NASTY, NASTY)
    head = AtlasHead(0, 0, role, 0.1, 4, 0.5, 0.9, (text, replace(text, top_images=())), ((NASTY, 0.5),))
    atlas = Atlas(
        NASTY, NASTY, NASTY, 1, (0,), 1, NASTY, 1, 1, 0.1, (head,), (PoolRound(1, 0.1), PoolRound(2, 0.2)), task=NASTY,
        cues=((NASTY, NASTY, NASTY),), notes=(NASTY,), provenance={NASTY: NASTY}, llm_usage=NASTY,
    )  # fmt: skip
    for pictures in ({}, {0: "images/0.jpg"}):
        index = harmless(index_page(atlas, pictures, [NASTY]), 12, scripts=2)
        assert not [address for address in index.loads if address.startswith("http")]
        harmless(head_page(atlas, 0, pictures), 8)


def test_search() -> None:
    row = ImageRow(0, NASTY, NASTY, 1, 40, 60, NASTY, label=NASTY, group=NASTY, source=NASTY)
    hits = (Hit(1, 0.5, row, (0.3, 0.2), (NASTY,), (NASTY,)), Hit(2, 0.4, row, (0.2, 0.2)))
    store, space = MagicMock(spec=Store), MagicMock(spec=Space)
    store.__len__.return_value, store.path, store.manifest = 9, NASTY, MagicMock(model=NASTY)
    space.mode, space.centred = "heads", True
    heads = (ChosenHead(0, 0, NASTY, f"a: {NASTY}"), ChosenHead(0, 1, NASTY))
    query = Query((), (), (NASTY,), (), heads, "auto", "", space, torch.zeros(2).double())
    ranking = Ranking(query, store, hits, 9, shared_texts=(NASTY,), notes=(NASTY,))
    found = [
        ResultPicture(hits[0], NASTY, IMAGE, "", torch.randn(4, 4), f"file:///{NASTY}"),
        ResultPicture(hits[1], NASTY, None, NASTY),
    ]
    harmless(search_page(ranking, [ResultPicture(None, NASTY, IMAGE)], found), 12)


def test_notebooks() -> None:
    reader = read(notebook_figures([(b"\x89PNG", NASTY, NASTY)]))
    assert reader.tags == ["figure", "img", "pre"]
    assert ("alt", NASTY) in reader.attributes
    assert NASTY in reader.text
    reader = read(framed(NASTY))
    assert reader.tags == ["iframe"]
    assert ("srcdoc", NASTY) in reader.attributes


def test_html_is_made_by_templates_alone() -> None:
    """No string holds a tag, nothing is escaped by hand, and no template marks a value as safe."""
    for path in SOURCES.rglob("*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                fixed = "".join(
                    part.value for part in node.values if isinstance(part, ast.Constant) and isinstance(part.value, str)
                )
                assert not re.search(r"(?<!\?P)</?[a-z]+[ >/]|(?<!\?)<!", fixed), (
                    f"{path.name}:{node.lineno} builds HTML"
                )
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not re.search(TAGS, node.value), f"{path.name}:{node.lineno} builds HTML"
            if isinstance(node, ast.ImportFrom) and node.module == "html":
                raise AssertionError(f"{path.name} escapes by hand")
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Markup":
                assert path.name == "html.py", f"{path.name} marks a string as safe"
    for path in (SOURCES / "report" / "templates").glob("*.html"):
        assert not re.search(r"\|\s*safe|autoescape", path.read_text().replace("autoescape does", "")), path.name
