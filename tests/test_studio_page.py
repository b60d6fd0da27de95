"""The studio's page in a real browser: each view by clicking and by the keyboard, barriers, weight."""

import io
import threading
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image
from studios import api, clip, store

import clip_anatomy as ca
from clip_anatomy.loading.demo import examples
from clip_anatomy.studio import answers
from clip_anatomy.studio.server import create_app
from clip_anatomy.studio.session import Session

__all__ = ["api", "clip", "store"]  # fixtures

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def served(clip: ca.Clip, store: ca.Store) -> Iterator[str]:
    import socket

    import uvicorn

    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(Session(clip, store)), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    with pytest.MonkeyPatch.context() as fewer:
        fewer.setattr(answers, "SAMPLE", 40)  # of the store's pictures, run again by clicking
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    server.should_exit = True
    thread.join(10)


def opened(browser: Any, served: str, *, waits: bool = True, **options: Any) -> tuple[Any, list[str]]:
    page = browser.new_page(**{"viewport": {"width": 1280, "height": 720}, **options})
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(served)
    page.wait_for_selector("body[data-ready=yes]")
    if waits:
        page.wait_for_selector("#accuracy .big")
    return page, problems


def chosen_view(page: Any, view: str) -> None:
    page.locator(f"#views [data-view={view}]").click()


def test_heads_are_named_searched_and_cut_out_by_clicking(browser: Any, served: str, store: ca.Store) -> None:
    page, problems = opened(browser, served)
    chosen_view(page, "atlas")
    page.get_by_role("button", name="Name the heads").click()
    page.wait_for_selector(".card", timeout=120_000)
    assert page.locator(".card").count() == 48
    page.locator("#word").fill("grass")
    page.locator("#word").press("Enter")
    page.locator(".card").nth(40).wait_for(state="detached")
    page.locator("#head", has_text="grass").wait_for()
    page.get_by_role("button", name="Search by this head").click()
    page.wait_for_selector(".hit")
    part = page.locator("#heads-of-search").input_value()
    expected = ca.search(store, f"text:{page.locator('#texts [aria-pressed=true]').inner_text()}", part, 24)
    page.locator("#search-heads", has_text=part).wait_for()
    assert page.locator(".hit img").first.get_attribute("title") == expected.ids[0]
    page.locator(".hit").first.get_by_role("button", name="Explain").click()
    page.wait_for_selector(".answer .num")
    assert page.locator("#gallery button").count() == len(examples()) + 1
    chosen_view(page, "segment")
    page.wait_for_selector("#legend li")
    picture, drawn = (page.locator(one).bounding_box() for one in ("#segment-picture", "#labels"))
    assert picture == drawn
    assert problems == []
    page.close()


def test_patches_and_edits_answer_to_the_keyboard(browser: Any, served: str, clip: ca.Clip, tmp_path: Path) -> None:
    page, problems = opened(browser, served)
    page.locator("#frame").focus()
    page.keyboard.press("ArrowDown")
    page.locator("#head-hint", has_text="patch 1, 0 is read most by").wait_for()
    page.keyboard.press("Escape")
    page.locator("#load").set_input_files({"name": "a.json", "mimeType": "application/json", "buffer": b"{}"})
    page.locator("#problem", has_text="a.json is no edit").wait_for()
    ca.Edit.of(clip, "7.0,6.2+mlp=3", None, by="zero").save(tmp_path / "edit.json")
    page.locator("#load").set_input_files(tmp_path / "edit.json")
    page.wait_for_selector('.head[data-part="7.0"][aria-pressed=true]')
    assert page.locator(".head[aria-pressed=true]").count() == 3
    assert page.locator("#by").input_value() == "zero"
    assert problems == []
    page.close()


def test_words_light_up_their_patches_and_patches_their_words(browser: Any, served: str, clip: ca.Clip) -> None:
    page, problems = opened(browser, served)
    words = page.locator("#sentence .word")
    for text in ("a fish", "a purple bird in the sky"):  # one of the list, one that is typed
        if text not in page.locator("#texts").inner_text():
            page.locator("#text").fill(text)
            page.locator("#text").press("Enter")
        page.locator("#texts").get_by_role("button", name=text, exact=True).click()
        page.locator('#sentence .word[aria-label*="of the cosine"]').nth(len(text.split()) - 1).wait_for()
        assert words.all_inner_texts() == text.split()
        expected = ca.pairs(clip, examples()[0], text).values
        words.last.hover()
        page.locator("#shown", has_text=f"“{text.split()[-1]}”: the patches it meets").wait_for()
        total = page.locator("#shown").inner_text().split("meets, ")[1].split()[0]
        assert float(total.replace("−", "-")) == pytest.approx(float(expected[:, -1].sum()), abs=6e-5)
        strongest = int(expected[:, -1].abs().argmax())
        alphas = page.evaluate(
            "Array.from(document.getElementById('map').getContext('2d').getImageData(0, 0, 8, 8).data)"
        )
        assert alphas[3::4][strongest] == max(alphas[3::4])
    words.first.focus()
    for _ in words.all():
        page.keyboard.press("ArrowRight")
    page.locator("#shown", has_text="“sky”: the patches it meets").wait_for()
    page.locator("#frame").focus()
    page.keyboard.press("ArrowDown")
    page.locator("#shown", has_text="patch 1, 0 meets").wait_for()
    shares = [float(one.get_attribute("aria-label").split(": ")[1].split()[0].replace("−", "-")) for one in words.all()]
    assert shares == pytest.approx(expected[8].tolist(), abs=6e-5)
    assert problems == []
    page.close()


def test_a_link_restores_everything(browser: Any, served: str) -> None:
    page, problems = opened(browser, served)
    for _ in range(5):
        page.locator("#texts li").last.get_by_role("button").last.click()
    page.locator("#texts").get_by_role("button", name="a star", exact=True).click()
    page.locator("#against").select_option("a fish")
    page.locator("#by").select_option("zero")
    page.locator("#effect").select_option("rerun")
    page.locator("#opacity").fill("30")
    page.locator('.head[data-part="mlp=3"]').click()
    page.locator('.head[data-part="7.2"]').click()
    chosen_view(page, "search")
    page.locator("#heads-of-search").fill("7.0,6.2")
    page.locator("#mode").select_option("without")
    page.locator("#search-heads", has_text="7.0").wait_for()
    page.locator(".hit").first.get_by_role("button", name="Explain").click()
    page.wait_for_selector("#picture:not([hidden])")
    taken = page.locator("#picture").get_attribute("alt")
    chosen_view(page, "segment")
    page.locator("#refine").uncheck()
    page.locator("#rule").select_option("otsu")
    page.locator("#segment-hint", has_text="otsu; at picture resolution, not refined").wait_for()
    link, said = page.url, page.locator("#legend").inner_text()
    page.close()
    again, more = opened(browser, link, waits=False)
    again.wait_for_selector("#legend li")
    assert again.locator("#legend").inner_text() == said
    chosen = {
        name: again.locator(f"#{name}").input_value()
        for name in ("by", "effect", "opacity", "mode", "rule", "heads-of-search")
    }
    assert chosen == {
        "by": "zero",
        "effect": "rerun",
        "opacity": "30",
        "mode": "without",
        "rule": "otsu",
        "heads-of-search": "7.0,6.2",
    }
    assert not again.locator("#refine").is_checked()
    chosen_view(again, "explain")
    again.wait_for_selector("#accuracy .big")
    off = again.locator(".head[aria-pressed=true]")
    assert {one.get_attribute("data-part") for one in off.all()} == {"mlp=3", "7.2"}
    assert again.locator("#texts [aria-pressed=true]").inner_text() == "a star"
    assert again.locator("#against").input_value() == str(["a bird", "a fish"].index("a fish"))
    assert again.locator("#picture").get_attribute("alt") == taken
    assert problems + more == []
    again.close()


def test_accuracies_felt_by_later_blocks_are_run_by_clicking(browser: Any, served: str) -> None:
    page, problems = opened(browser, served)
    page.locator("#by").select_option("zero")
    page.locator("#effect").select_option("rerun")
    page.locator('.head[data-part="7.0"]').click()
    page.locator("#measured", has_text="direct effects").wait_for()
    page.locator("#rerun").click()
    page.locator("#measured", has_text="run again in").wait_for()
    assert "felt by later blocks" in page.locator("#measured").inner_text()
    page.locator('.head[data-part="7.3"]').click()  # it took a moment: from now on by itself
    page.locator("#measured", has_text="direct effects").wait_for()
    page.locator("#measured", has_text="run again in").wait_for()
    page.locator("#effect").select_option("direct")
    page.locator("#measured", has_text="direct effects").wait_for()
    assert not page.locator("#again").is_visible()
    assert problems == []
    page.close()


@pytest.mark.parametrize("view", ["explain", "atlas", "search", "segment"])
def test_no_serious_barrier(browser: Any, served: str, view: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page, problems = opened(browser, served)
    chosen_view(page, view)
    page.wait_for_timeout(700)
    backgrounds = set()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        backgrounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        found = [one for one in Axe().run(page).response["violations"] if one["impact"] in ("serious", "critical")]
        assert [(one["id"], [node["html"][:200] for node in one["nodes"][:3]]) for one in found] == [], scheme
    assert len(backgrounds) == 2
    assert problems == []
    page.close()


def test_the_page_is_light(served: str, api: TestClient) -> None:
    page = api.get("/").text
    names = [one.name for one in (files("clip_anatomy.studio") / "static").iterdir()]
    assert {"studio.css", "main.js"} < set(names)
    parts = [api.get(f"/static/{name}").content for name in names]
    assert sum(map(len, parts)) < 1_000_000
    for text in (page, *(one.decode() for one in parts)):
        assert "http" not in text.replace("http-equiv", "")  # nothing from elsewhere


def test_a_person_finds_and_removes_the_spurious_cue_by_clicking(browser: Any, served: str, tmp_path: Path) -> None:
    page, problems = opened(browser, served)
    assert page.locator(".head").count() == 8 * 7
    assert page.locator("#lead").is_visible()  # the page says what to do first
    before = float(page.locator("#accuracy .big").inner_text().split()[0])
    page.get_by_role("button", name="Find suspects").click()
    page.wait_for_selector("#suggest:not([hidden])", timeout=120_000)
    assert "background" in page.locator("#suspects li").first.inner_text()  # that is the cue: birds on the sky
    page.locator("#suggest").click()
    page.wait_for_selector("#accuracy .big .up")
    after = float(page.locator("#accuracy .big .up").inner_text().split()[0])
    assert after > before + 10
    page.locator("#undo").click()
    page.wait_for_selector("#accuracy .big .up", state="detached")
    page.locator("#redo").click()
    page.wait_for_selector("#accuracy .big .up")
    page.locator("#text").fill("<img src=x onerror=alert(1)>")
    page.get_by_role("button", name="Add").click()
    page.wait_for_selector(".answer > :has-text('onerror')")
    file = io.BytesIO()
    Image.new("RGB", (40, 40), "red").save(file, "PNG")
    named = {"name": '"><img src=x onerror=alert(2)>.png', "mimeType": "image/png", "buffer": file.getvalue()}
    page.locator("#files").set_input_files(named)
    page.wait_for_selector("#gallery button:nth-child(7)")
    assert page.locator("img[src=x]").count() == 0
    picture, drawn = (page.locator(one).bounding_box() for one in ("#picture", "#map"))
    assert picture == drawn
    for _ in page.locator("#texts li").all():  # nothing is asked any more, and nothing breaks
        page.locator("#texts li").last.get_by_role("button").last.click()
    page.locator("#answer", has_text="Add a text.").wait_for()
    page.goto(page.url)  # a link restores the view
    page.reload()
    page.wait_for_selector("#accuracy .big .up")
    assert problems == []
    page.close()
