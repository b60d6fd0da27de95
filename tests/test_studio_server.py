"""The studio's server: what waits, what is turned away, what outlives a restart."""

import io
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image
from studios import clip, ended, picture

import clip_anatomy as ca
from clip_anatomy.errors import BadInput, BadSpec
from clip_anatomy.loading.demo import examples
from clip_anatomy.studio import encoder
from clip_anatomy.studio.jobs import Jobs
from clip_anatomy.studio.server import check_host, create_app, listen
from clip_anatomy.studio.session import WAITING, Session

__all__ = ["clip"]  # fixtures

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def api(clip: ca.Clip) -> TestClient:
    return TestClient(create_app(Session(clip)), base_url="http://127.0.0.1:7860")


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


def test_a_job_gives_the_model_to_requests_between_its_steps(clip: ca.Clip) -> None:
    session, told, answered = Session(clip), [], threading.Event()

    def job() -> None:
        with session.between(lambda *step: told.append(step)) as tell:
            for at in range(5_000):
                assert session._model.locked()
                if answered.is_set():
                    return
                tell("counting", at, 5_000)

    running = threading.Thread(target=job)
    running.start()
    session.run(answered.set)  # waits for the end of a step, not of the job
    running.join()
    assert len(told) < 5_000
    assert not session._model.locked()


def test_a_full_queue_says_when_to_come_again(api: TestClient) -> None:
    session: Session = api.app.state.session  # pyright: ignore[reportAttributeAccessIssue]
    question = {"picture": picture(api), "texts": ["a text that nobody asked before"]}
    with ExitStack() as waiting:
        for _ in range(WAITING):
            waiting.enter_context(session._place())
        refused = api.post("/api/v1/explain", json=question)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert api.get(f"/api/v1/pictures/{question['picture']}").status_code == 200  # what needs no model goes on
    assert api.post("/api/v1/explain", json=question).status_code == 200


def test_ctrl_c_ends_cleanly_with_a_slow_client(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "clip_anatomy", "serve", "--port", "0", "--no-ui", "--token", "s3cret"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        said = iter(server.stderr.readline, "")
        address = next(line for line in said if "http://" in line).split()[1]
        base, token = address.split("?token=")
        sent = f"Host: 127.0.0.1\r\nContent-Length: 999999\r\nAuthorization: Bearer {token}\r\n\r\na few bytes"
        with socket.create_connection(("127.0.0.1", urlsplit(base).port), 10) as gone:
            gone.sendall(f"POST /api/v1/pictures HTTP/1.1\r\n{sent}".encode())
        with socket.create_connection(("127.0.0.1", urlsplit(base).port), 10) as slow:
            slow.sendall(f"POST /api/v1/pictures HTTP/1.1\r\n{sent}".encode())
            with httpx.Client(base_url=base, headers={"authorization": f"Bearer {token}"}, timeout=20) as at:
                assert at.get("api/v1/model").json()["model"] == "demo"  # the slow one blocks nobody
                assert at.get("/").status_code == 404  # --no-ui
            server.send_signal(signal.SIGINT)
            rest = "".join(said)
            code = server.wait(15)
    assert "Traceback" not in rest
    assert code in (0, 130)


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


def test_a_damaged_record_of_jobs_is_no_record(tmp_path: Path) -> None:
    for record in (
        '[{"id": "x", "verb": "slow"}]',
        '[{"id": 1, "verb": ["slow"]}]',
        '[{"id": 1e99, "verb": "slow"}]',
        "[[[",
        "[3]",
        '[{"id": 1, "verb": "slow", "state": 7}]',
        '[{"id": 1, "verb": "slow", "given": 7}]',
    ):
        (tmp_path / "studio-jobs.json").write_text(record)
        jobs = Jobs({"slow": lambda _: {}}, tmp_path)
        assert jobs.start("slow").id == 1
        jobs.close()


def test_answers_leave_at_once() -> None:
    """With Nagle's algorithm the second packet of each answer waits 40 ms for the first one's acknowledgement."""
    with listen("127.0.0.1", 0) as server, socket.create_connection(server.getsockname()) as client:
        accepted, _ = server.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert client


def test_metrics_count_requests_by_route_and_forwards(clip: ca.Clip) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    api = TestClient(create_app(Session(clip), token="secret"), base_url="http://127.0.0.1:7860")
    assert api.get("/metrics").status_code == 401
    api.headers["authorization"] = "Bearer secret"
    sent = api.post("/api/v1/pictures", content=examples()[0].read_bytes()).json()["id"]
    for _ in range(2):
        assert api.get(f"/api/v1/pictures/{sent}").status_code == 200
    assert api.get("/api/v1/pictures/unknown").status_code == 400
    assert api.get("/no/such/page").status_code == 404
    answer = api.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    values = {
        (one.name, tuple(one.labels.values())): one.value
        for family in text_string_to_metric_families(answer.text)
        for one in family.samples
    }
    route = "/api/v1/pictures/{picture}"
    assert values["clip_anatomy_requests_total", (route, "200")] == 2
    assert values["clip_anatomy_requests_total", (route, "400")] == 1
    assert values["clip_anatomy_requests_total", ("other", "404")] == 1
    assert values["clip_anatomy_requests_total", ("other", "401")] == 1
    assert values["clip_anatomy_request_seconds_count", (route,)] == 3
    assert values["clip_anatomy_forwards_total", ()] == 1
    assert values["clip_anatomy_pictures_held", ()] == 1
    assert values["clip_anatomy_waiting", ()] == 0
    assert values["process_resident_memory_bytes", ()] > 1e7
    assert sent not in answer.text
