"""Every method page says its equation, source, convention, proof, cost and limits, and the files that it names are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ["explain", "maps", "segment", "atlas", "ablate", "repair", "pairs", "second-order", "concepts", "refer", "align", "sanity", "resnet", "retrieval", "store", "protocols", "edit"]  # fmt: skip
SAYS = ("Equation", "Source", "Convention", "Proof", "Cost", "Limits")


@pytest.mark.parametrize("name", PAGES)
def test_a_method_page_says_what_a_reader_checks(name: str) -> None:
    text = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    paragraphs = {word: re.findall(rf"\*\*{word}\b.*?(?=\n\n|\Z)", text, re.DOTALL) for word in SAYS}
    limits = "## Limits" in text  # a section of its own
    assert not [word for word in SAYS if not paragraphs[word] and not (word == "Limits" and limits)]
    assert all(re.search(r"\b(19|20)\d\d\b|Ours", one) for one in paragraphs["Source"][:1])
    proofs = re.findall(r"`(tests/\w+\.py)`", " ".join(paragraphs["Proof"]))
    assert proofs
    named = [*proofs, *re.findall(r"`python (bench/\w+\.py)", text)]
    assert not [one for one in named if not (ROOT / one).is_file()]


@pytest.mark.parametrize("name", PAGES)
def test_links_within_the_pages_lead_somewhere(name: str) -> None:
    text = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    for file, place in re.findall(r"\]\(([\w-]+\.md)?#([\w-]+)\)", text):
        other = (ROOT / "docs" / (file or f"{name}.md")).read_text(encoding="utf-8")
        titles = re.findall(r"^#+ (.*)$", other, re.MULTILINE)
        anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
        assert place in anchors, f"{file}#{place}"
