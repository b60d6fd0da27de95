"""A studio over the bundled model and a small store of its world: fixtures."""

import time

import pytest
from fastapi.testclient import TestClient

import clip_anatomy as ca
from clip_anatomy.studio.jobs import Jobs
from clip_anatomy.studio.server import create_app
from clip_anatomy.studio.session import Session


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


def ended(jobs: Jobs, number: int) -> None:
    for _ in range(1000):
        if jobs.job(number).state not in ("waiting", "running"):
            return
        time.sleep(0.01)
    raise AssertionError(jobs.job(number))
