"""The studio: its API, its jobs, its checks."""

import builtins
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image
from studios import api, clip, ended, picture, store

import clip_anatomy as ca
from clip_anatomy.data.open_dataset import picture_of
from clip_anatomy.images.geometry import patch_grid
from clip_anatomy.loading.demo import examples
from clip_anatomy.studio.session import MOST_MEANS, Session

__all__ = ["api", "clip", "store"]  # fixtures

pytestmark = pytest.mark.usefixtures("one_thread")
TEXTS = ["a bird", "the sky", "water"]


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


def test_words_meet_patches_as_pairs_says(api: TestClient, clip: ca.Clip, tmp_path: Path) -> None:
    text = "a purple bird in the sky"
    found = api.post("/api/v1/pairs", json={"picture": picture(api), "text": text}).json()
    expected = ca.pairs(clip, examples()[0], text)
    assert found["words"] == text.split() == list(expected.b.parts)
    values = torch.tensor(found["values"], dtype=torch.float64)
    torch.testing.assert_close(values.flatten(1).T, expected.values, rtol=0, atol=1e-5)
    assert found["cosine"] == pytest.approx(expected.cosine, abs=1e-5)
    assert values.shape == (6, *patch_grid((1, 3, *clip.preprocess.size), clip.patch))
    called_like_a_file = str(examples()[1])
    again = api.post("/api/v1/pairs", json={"picture": picture(api), "text": called_like_a_file})
    assert again.json()["text"] == called_like_a_file
    assert len(again.json()["words"]) >= 1


@pytest.mark.parametrize("by", ["zero", "mean"])
def test_accuracies_felt_by_later_blocks(api: TestClient, clip: ca.Clip, store: ca.Store, by: str) -> None:
    started = api.post("/api/v1/jobs", json={"verb": "ablate", "select": "1.4,7.0", "by": by, "images": 30}).json()
    ended(api.app.state.jobs, started["id"])  # pyright: ignore[reportAttributeAccessIssue]
    direct = api.get(f"/api/v1/jobs/{started['id']}").json()["result"]
    asked = {"verb": "ablate", "select": "1.4,7.0", "by": by, "effect": "rerun", "images": 30}
    job = api.post("/api/v1/jobs", json=asked).json()
    assert job["given"] == {name: asked[name] for name in ("select", "by", "effect", "images")}
    ended(api.app.state.jobs, job["id"])  # pyright: ignore[reportAttributeAccessIssue]
    found = api.get(f"/api/v1/jobs/{job['id']}").json()["result"]
    session: Session = api.app.state.session  # pyright: ignore[reportAttributeAccessIssue]
    task = session.task
    assert task is not None
    assert task.groups is not None
    means = None if by == "zero" else session.written_means
    edit = ca.Edit.of(clip, "1.4,7.0", means, by=by, effect="rerun")
    right, groups, whole, rows = [], [], [], store.rows()
    for group, (name, images) in enumerate(task.group_sizes):  # the same part of every group
        members = np.flatnonzero(task.groups.numpy() == group)
        kept = int(np.ceil(images * 30 / len(task.rows)))
        told = next(one for one in found["groups"] if one["name"] == name)
        assert told["images"] == kept
        for at in members[np.linspace(0, images - 1, kept).astype(int)]:
            row = rows[int(task.rows[at])]
            pixels = clip.pixels(picture_of(row.source, row.path, row.id))
            for kept_right, model in ((right, ca.EditedClip(clip, edit)), (whole, clip)):
                pick = (model.encode_image(pixels) @ task.texts.T).argmax()
                kept_right.append(bool(pick == task.labels[at]))
            groups.append(group)
    for name, expected in (("edited", right), ("whole", whole)):
        each = [
            np.mean([r for r, g in zip(expected, groups, strict=True) if g == one])
            for one in range(len(task.group_names))
        ]
        assert found[name]["groups"] == pytest.approx(each, abs=1e-6)
    of_no_group = int((task.groups < 0).sum())
    assert found["images"] == len(right) + int(np.ceil(of_no_group * 30 / len(task.rows)))
    assert (found["effect"], direct["effect"], found["of"]) == ("rerun", "direct", len(task.rows))
    assert api.post("/api/v1/ablate", json={"select": "1.4", "effect": "rerun"}).status_code == 400


NAMES = [
    "../../etc/passwd",
    "..\\..\\boot.ini",
    "C:\\Windows\\con",
    "nul",
    "a\0b.png",
    "/",
    "..",
    "name\n.png",
    "a" * 200,
    "\u202egnp.exe",
]


def test_no_path_of_a_request_is_opened(api: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret, link = tmp_path / "secret.json", tmp_path / "link.png"
    secret.write_text("{}")
    link.symlink_to(secret)
    opened: list[str] = []
    real = builtins.open

    def noted(file: Any, *args: Any, **more: Any) -> Any:
        opened.append(str(file))
        return real(file, *args, **more)

    monkeypatch.setattr(builtins, "open", noted)
    monkeypatch.setattr(io, "open", noted)
    held, body = picture(api), api.get(f"/api/v1/pictures/{picture(api)}").content
    for name in [*NAMES, str(secret), str(link)]:
        sent = api.post("/api/v1/pictures", params={"name": name}, content=body)
        assert sent.status_code == 200
        assert "/" not in sent.json()["name"]
        assert "\\" not in sent.json()["name"]
    for path in (str(secret), str(link)):
        for question in (
            ("pairs", {"picture": held, "text": path}),
            ("explain", {"picture": held, "texts": [path], "select": path}),
            ("explain", {"picture": held, "texts": [path], "by": path}),
            ("heatmap", {"picture": held, "texts": [path], "method": path}),
            ("heatmap", {"picture": held, "texts": [path], "heads": path}),
            ("segment", {"picture": held, "texts": [path], "threshold": path}),
            ("search", {"text": path, "heads": path}),
            ("search", {"text": path, "k": 2}),
            ("search", {"picture": path, "mode": path}),
            ("ablate", {"select": path, "by": path}),
            ("edit", {"select": "7.0", "by": path}),
            ("jobs", {"verb": path}),
        ):
            assert api.post(f"/api/v1/{question[0]}", json=question[1]).status_code < 500
        assert api.get("/api/v1/atlas", params={"words": path}).status_code == 200
    assert [one for one in opened if one.startswith(str(tmp_path)) or "passwd" in one or "boot.ini" in one] == []


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
