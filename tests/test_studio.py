"""The studio: its API, its checks, and one flow by clicking in a real browser."""

import io
import json
import shutil
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import clip_anatomy as ca
from clip_anatomy.errors import BadInput
from clip_anatomy.loading.demo import examples
from clip_anatomy.studio.server import check_host, create_app
from clip_anatomy.studio.session import Session

pytest.importorskip("fastapi")
from fastapi.testclient import TestClient

pytestmark = pytest.mark.usefixtures("one_thread")
TEXTS = ["a bird", "the sky", "water"]


@pytest.fixture(scope="module")
def clip() -> ca.Clip:
    return ca.load("demo")


@pytest.fixture(scope="module")
def store(clip: ca.Clip, tmp_path_factory: pytest.TempPathFactory) -> ca.Store:
    folder = tmp_path_factory.mktemp("studio") / "store"
    ca.index(clip, "world:400:val:balanced", folder, keep="heads,mlps")
    return ca.Store.open(folder, clip)


@pytest.fixture(scope="module")
def api(clip: ca.Clip, store: ca.Store) -> TestClient:
    return TestClient(create_app(Session(clip, store)), base_url="http://127.0.0.1:7860")


def picture(api: TestClient) -> str:
    return api.get("/api/v1/model").json()["examples"][0]["id"]


def test_explain_is_the_exact_split(api: TestClient, clip: ca.Clip) -> None:
    found = api.post("/api/v1/explain", json={"picture": picture(api), "texts": TEXTS}).json()
    parts = ca.decompose(clip, examples()[0])
    toward = parts.toward(clip.encode_text(TEXTS))
    torch.testing.assert_close(torch.tensor(found["heads"]), toward.heads[0], rtol=0, atol=1e-6)
    whole = torch.tensor(found["heads"]).sum((0, 1)) + torch.tensor(found["mlps"]).sum(0)
    whole += torch.tensor(found["input_embedding"]) + torch.tensor(found["bias"])
    torch.testing.assert_close(whole, torch.tensor(found["cosine"]["whole"]), rtol=0, atol=1e-4)
    assert found["cosine"]["edited"] == found["cosine"]["whole"]
    assert sum(found["probability"]["whole"]) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("by", ["zero", "mean"])
def test_heads_off_is_the_ordinary_edit(api: TestClient, clip: ca.Clip, store: ca.Store, by: str) -> None:
    question = {
        "picture": picture(api),
        "texts": TEXTS,
        "select": "7.0,6.2+mlp=3" if by == "zero" else "7.0,6.2",
        "by": by,
    }
    found = api.post("/api/v1/explain", json=question).json()
    edit = ca.Edit.of(clip, question["select"], None if by == "zero" else store.moments(), by=by)
    edited = ca.EditedClip(clip, edit).encode_image(clip.pixels(examples()[0]))
    cosine = torch.nn.functional.cosine_similarity(edited, clip.encode_text(TEXTS))
    torch.testing.assert_close(torch.tensor(found["cosine"]["edited"]), cosine, rtol=0, atol=1e-5)
    packed = api.post("/api/v1/edit", json={"select": question["select"], "by": by})
    with zipfile.ZipFile(io.BytesIO(packed.content)) as archive:
        assert json.loads(archive.read("edit.json"))["model"]["name"] == "demo"


def test_map_and_accuracy_are_those_of_the_functions(api: TestClient, clip: ca.Clip, store: ca.Store) -> None:
    found = api.post("/api/v1/heatmap", json={"picture": picture(api), "texts": TEXTS, "heads": "7.0"}).json()
    expected = ca.heatmap(clip, examples()[0], TEXTS, heads="7.0").values[0]
    torch.testing.assert_close(torch.tensor(found["values"]), expected, rtol=0, atol=1e-5)
    measured = api.post("/api/v1/ablate", json={"select": "7.0", "by": "mean"}).json()
    study = ca.study(store, select=["7.0"], clip=clip)
    assert measured["edited"]["average"] == study.effects[0].accuracy
    assert measured["whole"]["average"] == study.whole.accuracy


def test_pictures_are_sent_and_refused(api: TestClient) -> None:
    file = io.BytesIO()
    Image.new("RGB", (90, 60), "red").save(file, "PNG")
    sent = api.post("/api/v1/pictures", params={"name": "../../<b>.png"}, content=file.getvalue()).json()
    assert sent["name"] == "<b>.png"
    shown = Image.open(io.BytesIO(api.get(f"/api/v1/pictures/{sent['id']}").content))
    assert shown.size == (448, 448)
    for data in (b"", b"no picture", file.getvalue()[:40]):
        refused = api.post("/api/v1/pictures", content=data)
        assert refused.status_code == 400, refused.text
        assert "error" in refused.json()


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("explain", {"picture": "nowhere", "texts": ["a"]}, 400, "Send it again"),
        ("explain", {"picture": "nowhere", "texts": []}, 422, ""),
        ("explain", {"picture": "x" * 1000, "texts": ["a"]}, 422, ""),
        ("ablate", {"select": "99.1"}, 400, "99"),
        ("ablate", {"select": "; DROP"}, 400, "Type"),
        ("ablate", {"select": "7.0", "by": "magic"}, 400, "magic"),
    ],
)
def test_odd_requests_are_one_sentence(
    api: TestClient, path: str, body: dict[str, Any], status: int, message: str
) -> None:
    answer = api.post(f"/api/v1/{path}", json=body)
    assert answer.status_code == status, answer.text
    assert message in answer.text


def test_only_its_own_page_and_name_are_answered(clip: ca.Clip) -> None:
    app = create_app(Session(clip), token="s3cret")
    local = TestClient(app, base_url="http://127.0.0.1:7860")
    assert local.get("/api/v1/model").status_code == 401
    assert local.get("/api/v1/model", headers={"authorization": "Bearer s3cret"}).status_code == 200
    assert local.get("/?token=s3cret").status_code == 200
    assert local.get("/api/v1/model").status_code == 200  # by the cookie
    assert TestClient(app, base_url="http://evil.example").get("/?token=s3cret").status_code == 403
    foreign = {"authorization": "Bearer s3cret", "origin": "http://evil.example"}
    assert local.post("/api/v1/ablate", json={}, headers=foreign).status_code == 403
    for path in ("/static/../server.py", "/static/%2e%2e/server.py", "/static/..%5cserver.py", "/static/%00"):
        assert local.get(path).status_code in (400, 404)
    assert "default-src 'none'" in local.get("/").headers["content-security-policy"]
    with pytest.raises(BadInput, match="--token SECRET"):
        check_host("0.0.0.0", None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium on this machine. Type: apt-get install chromium")
    with sync_playwright() as play:
        running = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield running
        running.close()


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


def test_a_person_finds_and_removes_the_spurious_cue_by_clicking(browser: Any, served: str, tmp_path: Path) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 720})
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(served)
    page.wait_for_selector("body[data-ready=yes]")
    page.wait_for_selector("#accuracy .big")
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
