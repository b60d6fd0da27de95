"""The studio: its API, its jobs, its checks."""

import io
import json
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image
from studios import api, clip, store

import clip_anatomy as ca
from clip_anatomy.data.open_dataset import picture_of
from clip_anatomy.errors import BadInput, BadSpec
from clip_anatomy.images.geometry import patch_grid
from clip_anatomy.loading.demo import examples
from clip_anatomy.studio import encoder
from clip_anatomy.studio.jobs import Jobs
from clip_anatomy.studio.server import check_host, create_app
from clip_anatomy.studio.session import MOST_MEANS, Session

__all__ = ["api", "clip", "store"]  # fixtures

pytestmark = pytest.mark.usefixtures("one_thread")
TEXTS = ["a bird", "the sky", "water"]


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


@pytest.mark.parametrize("by", ["zero", "mean"])
def test_heads_off_for_later_blocks_too(api: TestClient, clip: ca.Clip, store: ca.Store, by: str) -> None:
    question = {"picture": picture(api), "texts": TEXTS, "select": "1.4,2.0", "by": by, "effect": "rerun"}
    found = api.post("/api/v1/explain", json=question).json()
    rows = store.rows()
    some = [rows[int(at)] for at in np.linspace(0, len(rows) - 1, MOST_MEANS)]
    means = None if by == "zero" else ca.Means.of(clip, [picture_of(row.source, row.path, row.id) for row in some])
    edit = ca.Edit.of(clip, "1.4,2.0", means, by=by, effect="rerun")
    edited = ca.EditedClip(clip, edit).encode_image(clip.pixels(examples()[0]))
    cosine = torch.nn.functional.cosine_similarity(edited, clip.encode_text(TEXTS))
    torch.testing.assert_close(torch.tensor(found["cosine"]["edited"]), cosine, rtol=0, atol=1e-5)
    direct = api.post("/api/v1/explain", json={**question, "effect": "direct"}).json()
    assert direct["cosine"]["edited"] != found["cosine"]["edited"]
    packed = api.post("/api/v1/edit", json={name: question[name] for name in ("select", "by", "effect")})
    with zipfile.ZipFile(io.BytesIO(packed.content)) as archive:
        assert {one["effect"] for one in json.loads(archive.read("edit.json"))["parts"]} == {"rerun"}
    assert api.post("/api/v1/explain", json={**question, "effect": "magic"}).status_code == 400


def test_map_and_accuracy_are_those_of_the_functions(api: TestClient, clip: ca.Clip, store: ca.Store) -> None:
    found = api.post("/api/v1/heatmap", json={"picture": picture(api), "texts": TEXTS, "heads": "7.0"}).json()
    expected = ca.heatmap(clip, examples()[0], TEXTS, heads="7.0").values[0]
    torch.testing.assert_close(torch.tensor(found["values"]), expected, rtol=0, atol=1e-5)
    measured = api.post("/api/v1/ablate", json={"select": "7.0", "by": "mean"}).json()
    study = ca.study(store, select=["7.0"], clip=clip)
    assert measured["edited"]["average"] == study.effects[0].accuracy
    assert measured["whole"]["average"] == study.whole.accuracy


def test_every_head_of_a_patch_adds_up_to_the_map(api: TestClient, clip: ca.Clip) -> None:
    question = {"picture": picture(api), "texts": TEXTS}
    rows, cols = patch_grid((1, 3, *clip.preprocess.size), clip.patch)
    whole = api.post("/api/v1/heatmap", json=question).json()["values"]
    patch = api.post("/api/v1/patch", json={**question, "row": rows - 1, "col": 2}).json()
    sums = torch.tensor(patch["heads"]).sum((0, 1))
    torch.testing.assert_close(sums, torch.tensor(whole)[:, rows - 1, 2], rtol=0, atol=1e-4)
    outside = api.post("/api/v1/patch", json={**question, "row": rows, "col": 0})
    assert outside.status_code == 400
    assert f"0 to {cols - 1}" in outside.json()["error"]


def test_segment_is_that_of_the_function(api: TestClient, clip: ca.Clip) -> None:
    question = {"picture": picture(api), "texts": TEXTS, "refine": False, "threshold": "otsu"}
    found = api.post("/api/v1/segment", json=question).json()
    labels = [label for label, length in found["runs"] for _ in range(length)]
    assert len(labels) == found["rows"] * found["cols"]
    shown = Image.open(io.BytesIO(api.get(f"/api/v1/pictures/{question['picture']}").content))
    expected = ca.segment(clip, [shown], TEXTS, threshold="otsu").labels[0]
    assert labels == expected.reshape(-1).tolist()
    assert found["shares"] == [float((expected == k).mean()) for k in range(1, len(TEXTS) + 1)]


def test_search_is_that_of_the_function(api: TestClient, clip: ca.Clip, store: ca.Store) -> None:
    found = api.post("/api/v1/search", json={"image": 3, "heads": "7.0,6.2", "k": 5}).json()
    expected = ca.search(store, f"id:{store.rows()[3].id}", "7.0,6.2", 5, clip=clip)
    assert [hit["id"] for hit in found["hits"]] == expected.ids
    assert found["title"] == expected.title
    small = Image.open(io.BytesIO(api.get(f"/api/v1/images/{found['hits'][0]['index']}").content))
    assert small.size == (64, 64)
    taken = api.post("/api/v1/images/3").json()
    assert api.post("/api/v1/explain", json={"picture": taken["id"], "texts": TEXTS}).status_code == 200
    assert api.get("/api/v1/images/999999").status_code == 400


def test_pictures_that_wait_together_are_encoded_together(clip: ca.Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(clip)
    pixels = [clip.pixels(path) for path in examples()[:4]]
    alone = [ca.decompose(clip, one) for one in pixels]
    batches: list[int] = []
    monkeypatch.setattr(encoder, "decompose", lambda *args: batches.append(len(args[1])) or ca.decompose(*args))
    found: dict[int, ca.Parts] = {}
    with session._model:  # the model is busy: all four wait
        threads = [
            threading.Thread(target=lambda at=at: found.update({at: session.encoder.split(pixels[at])}))
            for at in range(len(pixels))
        ]
        for thread in threads:
            thread.start()
        while len(session.encoder._waiting) < len(pixels):
            time.sleep(0.01)
    for thread in threads:
        thread.join()
    assert batches == [len(pixels)]
    texts = torch.eye(clip.image_tower.embed)[:2]
    for at, one in enumerate(alone):
        torch.testing.assert_close(found[at].heads, one.heads, rtol=0, atol=1e-5)
        torch.testing.assert_close(found[at].tokens(texts), one.tokens(texts), rtol=0, atol=1e-5)


def test_jobs_are_cancelled_fail_in_one_sentence_and_outlive_a_restart(tmp_path: Path) -> None:
    running, go_on = threading.Event(), threading.Event()

    def slow(progress: Any) -> dict[str, Any]:
        for done in range(1000):
            progress("counting", done, 1000)
            running.set()
            if not go_on.is_set():
                go_on.wait(0.01)
        return {"counted": 1000}

    def broken(progress: Any) -> dict[str, Any]:
        raise BadInput("no store. Type another")

    jobs = Jobs({"slow": slow, "broken": broken}, tmp_path)
    first, same = jobs.start("slow"), jobs.start("slow")
    assert first.id == same.id
    assert running.wait(5)
    jobs.cancel(first.id)
    failed = jobs.start("broken")
    ended(jobs, failed.id)
    assert (jobs.job(first.id).state, jobs.job(failed.id).error) == ("cancelled", "no store. Type another")
    running.clear()
    again = jobs.start("slow")
    assert running.wait(5)
    jobs.close()
    assert jobs.job(again.id).state == "running"
    go_on.set()
    after = Jobs({"slow": slow, "broken": broken}, tmp_path)  # the next start of the server
    ended(after, again.id)
    assert after.job(again.id).result == {"counted": 1000}
    assert [job.state for job in after.all()] == ["done", "failed", "cancelled"]
    after.close()
    (tmp_path / "studio-jobs.json").write_text('[{"verb": "slow", "nonsense": 1}]')
    assert Jobs({"slow": slow}, tmp_path).all() == []
    with pytest.raises(BadSpec, match="Type one of: slow"):
        Jobs({"slow": slow}).start("magic")


def ended(jobs: Jobs, number: int) -> None:
    for _ in range(1000):
        if jobs.job(number).state not in ("waiting", "running"):
            return
        time.sleep(0.01)
    raise AssertionError(jobs.job(number))


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
        ("search", {"text": "a bird", "heads": "99.1"}, 400, "99"),
        ("search", {"text": "a bird", "heads": "role=magic"}, 400, "Type"),
        ("search", {"image": 10**9}, 400, "were expected"),
        ("segment", {"picture": "nowhere", "texts": ["a"]}, 400, "Send it again"),
        ("jobs", {"verb": "magic"}, 400, "Type one of"),
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
    with pytest.raises(BadInput, match="token=SECRET"):
        check_host("0.0.0.0", None)
