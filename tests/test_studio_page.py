"""The studio's page in a real browser: each view by clicking and by the keyboard, barriers, weight."""

import threading
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from studios import api, clip, store

import clip_anatomy as ca
from clip_anatomy.loading.demo import examples
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
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    server.should_exit = True
    thread.join(10)


def opened(browser: Any, served: str, **options: Any) -> tuple[Any, list[str]]:
    page = browser.new_page(**{"viewport": {"width": 1280, "height": 720}, **options})
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(served)
    page.wait_for_selector("body[data-ready=yes]")
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


@pytest.mark.parametrize("view", ["explain", "atlas", "search", "segment"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_barrier(browser: Any, served: str, view: str, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page, problems = opened(browser, served, color_scheme=scheme)
    chosen_view(page, view)
    page.wait_for_timeout(700)
    found = [one for one in Axe().run(page).response["violations"] if one["impact"] in ("serious", "critical")]
    assert [(one["id"], [node["html"][:200] for node in one["nodes"][:3]]) for one in found] == []
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
    before = float(page.locator("#accuracy .big").inner_text().split()[0])
    page.get_by_role("button", name="Find suspects").click()
    page.wait_for_selector("#suggest:not([hidden])", timeout=120_000)
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
    assert page.locator("#texts img").count() == 0
    picture, drawn = (page.locator(one).bounding_box() for one in ("#picture", "#map"))
    assert picture == drawn
    page.goto(page.url)  # a link restores the view
    page.reload()
    page.wait_for_selector("#accuracy .big .up")
    assert problems == []
    page.close()
