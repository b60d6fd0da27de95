"""The atlas in a real browser, opened from a folder: it shows, filters, searches, sorts, and says nothing on the console."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clip_anatomy.atomic_output import atomic_output
from clip_anatomy.naming.atlas import Atlas, AtlasHead, AtlasImage, AtlasText, PoolRound
from clip_anatomy.naming.roles import Role
from clip_anatomy.report.atlas_pages import ATLAS, index_page, write_atlas
from clip_anatomy.store.rows import ImageRow

NASTY = "</script><script>document.title='broken'</script><img src=x onerror=\"document.title='broken'\"> & \"quotes\""


def seen(place: int) -> tuple[AtlasImage, ...]:
    return tuple(
        AtlasImage((place + k) % 8, f"world-0-test-{(place + k) % 8}", "star", 0.1 - 0.01 * k) for k in range(3)
    )


def text(words: str, gain: float, place: int) -> AtlasText:
    return AtlasText(words, "colour", gain, gain, gain, "the runner-up", 0.02, 0.9, 0.8, seen(place), seen(place + 3))


def head(layer: int, number: int, role: Role, words: str) -> AtlasHead:
    place = layer * 3 + number
    texts = (text(words, 0.4, place), text(f"a second text of {place}", 0.1, place + 1))
    texts += tuple(AtlasText(f"text {k} of {place}", "", 0.01, 0.01, 0.5, "", 0.5) for k in range(8))
    return AtlasHead(
        layer, number, role, 1e-3 * (place + 1), 32, 0.5 + 0.01 * place, 0.9, texts, (("colour", 0.7), ("shape", 0.1))
    )


@pytest.fixture(scope="module")
def atlas() -> Atlas:
    colour, shape = Role("colour", 0.6, (("colour", 0.6), ("shape", 0.2)), "colour", "colour"), Role("shape", 0.3)
    asked = Role("things that shine", 0.8, source="tiny", why="because", raw=f"raw {NASTY}")
    heads = (
        head(4, 0, colour, "something red"),
        head(4, 1, shape, "a star"),
        head(4, 2, Role("mixed", 0.0), NASTY),
        head(5, 0, colour, "the colour blue"),
        head(5, 1, asked, "a shiny red star"),
        AtlasHead(5, 2, Role("unnamed", 0.0), 0.0, 1, 0.0, 0.0, ()),
    )
    return Atlas(
        model="demo",
        digest="0" * 32,
        store="store",
        images=8,
        layers=(4, 5),
        heads_per_layer=3,
        pool="a pool",
        pool_texts=100,
        top_k=10,
        threshold=0.3,
        heads=heads,
        curve=(PoolRound(50, 0.4), PoolRound(100, 0.45)),
        agreement={"bar": 0.5, "clear": 4, "tested": 3, "right": 2, "mixed": 1},
        cues=(("colour", "yes", f"why {NASTY}"),),
        task="counting",
        notes=("a note",),
    )


@pytest.fixture(scope="module")
def folder(atlas: Atlas, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "an atlas"
    rows = [ImageRow(k, f"world-0-test-{k}", str(k), 1, 64, 64, str(k), source="world:8:test") for k in range(7)]
    rows.append(ImageRow(7, "lost", "/nowhere/lost.png", 1, 64, 64, "lost", source="/nowhere"))
    with atomic_output(out, ATLAS) as staging:
        missing = write_atlas(atlas, rows, staging.folder)
    assert len(missing) == 1
    return out


@pytest.fixture
def page(browser: Any, folder: Path) -> Iterator[Any]:
    """The index page; the test fails if anything is said on the console or asked of a network."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    opened = context.new_page()
    said: list[str] = []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on(
        "request", lambda request: None if request.url.startswith(("file:", "data:")) else said.append(request.url)
    )
    opened.on("requestfailed", lambda request: said.append(f"failed: {request.url}") if failed(request) else None)
    opened.goto((folder / "index.html").as_uri())
    yield opened
    assert said == []
    assert "broken" not in opened.title()
    context.close()


def failed(request: Any) -> bool:
    """Whether a file was missing, and not merely left behind by going to another page while it loaded."""
    return request.failure != "net::ERR_ABORTED"


def cards(page: Any) -> list[str]:
    return page.eval_on_selector_all(".card", "all => all.filter(c => !c.hidden).map(c => c.dataset.head)")


def lit(page: Any) -> set[str]:
    return set(page.eval_on_selector_all(".cell:not(.out)", "all => all.map(c => c.dataset.head)"))


def test_it_opens_with_all_heads_and_their_pictures(page: Any) -> None:
    assert page.locator("h1").inner_text() == "What the heads of demo are about"
    assert cards(page) == ["5.0", "5.1", "5.2", "4.0", "4.1", "4.2"]
    assert page.locator(".cell").count() == 6
    page.evaluate("document.querySelectorAll('img').forEach(i => i.loading = 'eager')")
    page.wait_for_function("[...document.images].every(i => i.complete)")
    widths = page.eval_on_selector_all(".card img", "all => all.map(i => i.naturalWidth)")
    assert len(widths) > 8
    assert set(widths) == {64}
    assert page.locator(".gone").count() > 0, "the lost picture is marked, not broken"
    body = page.locator("body").inner_text()
    assert "2 of 3 roles (67 %) are the true one; 1 more is called mixed" in body
    assert "Growing the pool" in body
    assert NASTY in body
    colours = page.eval_on_selector_all(
        ".pill.r0, .pill.r1, .pill.r2", "all => all.map(p => getComputedStyle(p).backgroundColor)"
    )
    assert len(set(colours)) == 3


def test_it_filters_by_role_and_remembers_in_the_address(page: Any) -> None:
    page.get_by_role("button", name="colour").click()
    assert cards(page) == ["5.0", "4.0"]
    assert lit(page) == {"5.0", "4.0"}
    assert page.locator("#count").inner_text() == "2 of 6 heads"
    page.get_by_role("button", name="things that shine").click()
    assert cards(page) == ["5.0", "5.1", "4.0"]
    page.reload()
    assert cards(page) == ["5.0", "5.1", "4.0"]
    assert page.get_by_role("button", name="colour").get_attribute("aria-pressed") == "true"
    page.locator(".card[data-head='5.1'] h3 a").click()
    page.wait_for_selector("h1:has-text('Layer 5, head 1')")
    page.go_back()
    page.wait_for_selector("#list")
    assert cards(page) == ["5.0", "5.1", "4.0"]


def test_it_searches_all_texts_best_first(page: Any) -> None:
    page.keyboard.press("/")
    page.keyboard.type("RED")
    assert sorted(cards(page)) == ["4.0", "5.1"]
    assert page.locator(".card[data-head='4.0'] .hit").inner_text() == "something red (40 %)"
    page.fill("#find", "text 7 of 15")
    assert cards(page) == ["5.0"], "texts that no card shows are found too"
    page.fill("#find", "script> &")
    assert cards(page) == ["4.2"]
    page.fill("#find", "nothing like it")
    assert cards(page) == []
    page.get_by_role("button", name="Show all heads").click()
    assert len(cards(page)) == 6
    page.fill("#find", "red")
    page.locator("#find").press("Escape")
    assert len(cards(page)) == 6


def test_it_sorts(page: Any) -> None:
    page.select_option("#sort", "sure")
    assert cards(page)[:3] == ["5.1", "5.0", "4.0"]
    page.select_option("#sort", "variance")
    assert cards(page)[0] == "5.1"
    page.select_option("#sort", "place")
    assert cards(page)[0] == "5.0"


def test_the_map_tells_and_leads_to_a_page_for_each_head(page: Any, folder: Path) -> None:
    page.hover(".cell[data-head='4.2']")
    assert page.locator("#tip").inner_text() == f"4.2 · mixed · {NASTY}"
    page.click(".cell[data-head='4.0']")
    page.wait_for_selector("h1:has-text('Layer 4, head 0')")
    body = page.locator("body").inner_text()
    assert "something red" in body
    assert "the second, “the runner-up”, scored 2 % less" in page.locator(
        ".measures dd[title*=runner]"
    ).first.get_attribute("title")
    assert "picked again in 90 % of the resamples" in page.content()
    assert "What truly drives it" in body
    page.wait_for_function("[...document.images].every(i => i.complete && i.naturalWidth === 64)")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("h1:has-text('Layer 4, head 1')")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("h1:has-text('Layer 4, head 2')")
    assert NASTY in page.locator("body").inner_text()
    page.goto((folder / "heads" / "05-01.html").as_uri())
    page.click("summary:has-text('Its whole answer')")
    assert f"raw {NASTY}" in page.locator("pre").inner_text()
    page.goto((folder / "heads" / "05-02.html").as_uri())
    assert "there is nothing to name" in page.locator("body").inner_text()
    page.click("text=all heads of demo")
    page.wait_for_selector("#list")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_in_light_and_dark_and_on_a_telephone(browser: Any, folder: Path, scheme: str) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    for name in ("index.html", "heads/04-00.html"):
        page.goto((folder / name).as_uri())
        wide = "[...document.querySelectorAll('main *, footer *, header *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1)"
        assert page.evaluate(f"{wide}.map(e => e.outerHTML.slice(0, 80))") == [], "nothing sticks out to the side"
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        ink, paper = page.evaluate(
            "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
        )
        light = [sum(map(int, colour[4:-1].split(","))) for colour in (ink, paper)]
        assert (light[0] < light[1]) == (scheme == "light")
        assert abs(light[0] - light[1]) > 450
    context.close()


def test_pages_stand_without_a_network_or_a_path_of_this_machine(folder: Path, atlas: Atlas) -> None:
    for file in folder.rglob("*.html"):
        text = file.read_text()
        assert "http:" not in text
        assert "https:" not in text
        assert str(folder) not in text
    assert json.loads((folder / "atlas.json").read_text())["schema"] == "clip-anatomy/atlas/3"
    assert index_page(atlas, {}).count('<article class="card') == 6
