"""The language-model client against a real HTTP server on this machine that speaks (and breaks) the chat-completions protocol."""

import json
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from chat import Server, said, serving

from clip_anatomy.errors import BadInput, EndpointError
from clip_anatomy.loading.disk_cache import DiskCache
from clip_anatomy.naming.language_model import LanguageModel, LlmUsage
from clip_anatomy.naming.llm_prompts import common_role, more_like, spurious
from clip_anatomy.naming.roles import Role


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("CLIP_ANATOMY_LLM_KEY", raising=False)
    with serving() as running:
        yield running


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.fixture
def model(server: Server, tmp_path: Path, waits: list[float]) -> LanguageModel:
    return LanguageModel(
        server.url, "tiny", timeout=2.0, cache=DiskCache(tmp_path / "answers.sqlite"), sleep=waits.append
    )


def test_a_question_goes_out_as_the_protocol_says_and_comes_back_in_words(server: Server, model: LanguageModel) -> None:
    server.replies = [said("  Stripes. ", 31, 7)]
    answer = model.ask("What is it?", system="Be brief.", most_tokens=9)
    assert (answer.text, answer.tokens_in, answer.tokens_out, answer.cached) == ("Stripes.", 31, 7, False)
    path, headers, body = server.seen[0]
    assert path == "/v1/chat/completions"
    assert headers["Content-Type"] == "application/json"
    assert "Authorization" not in headers
    assert body == {
        "model": "tiny",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is it?"}],
        "temperature": 0,
        "max_tokens": 9,
    }
    assert json.loads(answer.raw)["id"] == "x"


def test_the_key_is_sent_and_written_nowhere(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIP_ANATOMY_LLM_KEY", "sesame-1234")
    model = LanguageModel(server.url, "tiny", cache=DiskCache(tmp_path / "a.sqlite"))
    model.ask("What is it?")
    assert server.seen[0][1]["Authorization"] == "Bearer sesame-1234"
    assert "sesame" not in repr(model)
    assert all(b"sesame" not in file.read_bytes() for file in tmp_path.iterdir())


def test_a_question_is_asked_once_and_answered_from_disk_afterwards(server: Server, model: LanguageModel) -> None:
    server.answer = lambda question: question.upper()
    first, again, other = model.ask("one"), model.ask("one"), model.ask("two")
    assert (first.text, again.text, other.text) == ("ONE", "ONE", "TWO")
    assert (first.cached, again.cached, other.cached) == (False, True, False)
    assert len(server.seen) == 2
    LanguageModel(server.url, "another", cache=model.cache).ask("one")
    assert len(server.seen) == 3, "another model is another question"
    bill = LlmUsage.of([first, again, other], price=(100.0, 1000.0))
    assert (bill.sent, bill.cached, bill.tokens_in, bill.tokens_out) == (2, 1, 40, 10)
    assert bill.cost == pytest.approx((40 * 100 + 10 * 1000) / 1e6)
    assert str(bill) == "language model: 2 questions asked, 1 answered from disk; 40 tokens in, 10 out, cost 0.0140"


def test_trouble_that_passes_is_waited_for_longer_each_time(
    server: Server, model: LanguageModel, waits: list[float]
) -> None:
    server.replies = [(500, {}, b"oops"), (503, {}, b""), (200, {}, b"<html>gateway</html>"), said("at last")]
    assert model.ask("?").text == "at last"
    assert len(server.seen) == 4
    assert all(2**n * 0.5 <= wait <= 2**n * 1.5 for n, wait in enumerate(waits))
    assert len(waits) == 3


@pytest.mark.parametrize(
    ("header", "wait"),
    [
        ("7", (7, 7)),
        ("0", (0, 0)),
        ("999999", (60, 60)),
        (lambda: formatdate(time.time() + 20, usegmt=True), (15, 20)),
        ("soon", (0.5, 1.5)),
    ],
)
def test_retry_after_is_heeded(
    server: Server, model: LanguageModel, waits: list[float], header: Any, wait: tuple[float, float]
) -> None:
    told = header() if callable(header) else header
    server.replies = [(429, {"Retry-After": told}, b"{}"), said("ok")]
    assert model.ask("?").text == "ok"
    assert wait[0] <= waits[0] <= wait[1]


def test_a_slow_server_is_given_up_after_the_timeout(server: Server, tmp_path: Path) -> None:
    server.replies = [0.6, said("awake")]
    model = LanguageModel(server.url, "tiny", timeout=0.2, cache=DiskCache(None), sleep=lambda _: None)
    start = time.monotonic()
    assert model.ask("?").text == "awake"
    assert time.monotonic() - start < 0.55
    server.replies = [0.6]
    with pytest.raises(
        EndpointError, match=r"no usable answer in 2 tries \(the last: no answer within 0.2 s\).*type the same command"
    ):
        LanguageModel(server.url, "tiny", timeout=0.2, tries=2, cache=DiskCache(None), sleep=lambda _: None).ask("?")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"not json",
        b"[]",
        b'{"choices": []}',
        b'{"choices": [{"message": {"content": null}}]}',
        b'{"choices": [{"message": {"content": "  "}}]}',
        b"\xff\xfe",
    ],
)
def test_answers_that_are_none_are_asked_again_and_then_named(server: Server, model: LanguageModel, raw: bytes) -> None:
    server.replies = [(200, {}, raw)]
    with pytest.raises(EndpointError, match="gave no usable answer in 5 tries"):
        model.ask("?")
    assert len(server.seen) == 5
    server.replies = [said("fine now")]
    assert model.ask("?").text == "fine now", "nothing bad was kept on disk"


@pytest.mark.parametrize(
    ("code", "headers", "message"),
    [
        (401, {}, "refuses the key .HTTP 401: the reason.*export CLIP_ANATOMY_LLM_KEY"),
        (403, {}, "refuses the key"),
        (404, {}, "has no model 'tiny'.*llm_model=NAME"),
        (400, {}, "refuses the question .HTTP 400: the reason"),
        (302, {"Location": "http://evil.example/"}, "sends us on to http://evil.example/"),
    ],
)
def test_trouble_that_stays_is_said_at_once(
    server: Server, model: LanguageModel, code: int, headers: dict[str, str], message: str
) -> None:
    server.replies = [(code, headers, b"the reason")]
    with pytest.raises(EndpointError, match=message):
        model.ask("?")
    assert len(server.seen) == 1, "asked once, and not followed elsewhere"


def test_nobody_there(tmp_path: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    model = LanguageModel("http://127.0.0.1:9/v1", "tiny", tries=3, cache=DiskCache(None), sleep=waits.append)
    with pytest.raises(EndpointError, match="Connection refused"):
        model.ask("?")
    assert len(waits) == 2, "no waiting after the last try"


def test_settings_that_cannot_work_are_refused() -> None:
    for url in ("", "example.com", "ftp://example.com", "http://"):
        with pytest.raises(BadInput, match="llm='http://127.0.0.1:8000/v1'"):
            LanguageModel(url, "tiny")
    with pytest.raises(BadInput, match="llm_model=NAME"):
        LanguageModel("http://127.0.0.1", "")
    with pytest.raises(BadInput, match="timeout=60"):
        LanguageModel("http://127.0.0.1", "tiny", timeout=0.0)
    with pytest.raises(BadInput, match="line break"):
        LanguageModel("http://127.0.0.1", "tiny", key="a\nb")


# ---- what is asked


@pytest.mark.parametrize(
    ("text", "role", "confidence"),
    [
        ('{"role": "Colour", "confidence": 0.9, "why": "all name one"}', "colour", 0.9),
        ('Sure!\n```json\n{"role": "texture", "confidence": "80%"}\n```', "texture", 0.8),
        ('{"role": "unclear", "confidence": 0.2}', "mixed", 0.2),
        ('{broken} then {"role": "animals", "confidence": NaN}', "animals", 0.0),
        ("They are all red.", "", 0.0),
        ('{"role": "<script>alert(1)</script>", "confidence": 7}', "scriptalert1/script", 0.07),
    ],
)
def test_roles_are_read_however_they_are_wrapped(
    server: Server, model: LanguageModel, text: str, role: str, confidence: float
) -> None:
    server.replies = [said(text)]
    named = common_role(model, [("something red", 0.5), ("a\nblue thing", 0.25)], ["colour", "texture"])
    assert (named.role, named.confidence) == (role, pytest.approx(confidence))
    question = server.seen[0][2]["messages"][-1]["content"]
    assert "- something red (50 %)\n- a blue thing (25 %)" in question
    assert "What is common between all these image descriptions?" in question
    assert "colour, texture" in question
    assert named.answer.text == text.strip()


def test_names_of_two_words_come_back_as_the_pool_writes_them(server: Server, model: LanguageModel) -> None:
    server.replies = [said('{"role": "Body part", "confidence": 1}')]
    assert common_role(model, [("a hand", 1.0)], ["body_part", "colour"]).role == "body_part"
    assert "body part, colour" in server.seen[0][2]["messages"][-1]["content"]


def test_more_like_these(server: Server, model: LanguageModel) -> None:
    server.replies = [
        said('Here are some:\n1. a pink wall\n- "a green door".\n* Something red\n(3) a pink wall\n\n• ' + "x" * 400)
    ]
    texts, _ = more_like(model, ["something red", "a red wall"], 5)
    assert texts == ["a pink wall", "a green door"]


def test_spurious_cues(server: Server, model: LanguageModel) -> None:
    def answer(question: str) -> str:
        yes = "this cue in the image: background." in question
        return json.dumps({"spurious": "yes" if yes else "no", "why": "birds live there"})

    server.answer = answer
    found = spurious(model, "telling landbirds from waterbirds", ["background", "shape"])
    assert [(one.cue, one.spurious, one.why) for one in found] == [
        ("background", "yes", "birds live there"),
        ("shape", "no", "birds live there"),
    ]
    assert (
        "Can background be a spurious cue for telling landbirds from waterbirds?"
        in server.seen[0][2]["messages"][-1]["content"]
    )
    server.answer = lambda _: "Perhaps."
    assert spurious(model, "another task", ["shape"])[0].spurious == "unclear"
    with pytest.raises(BadInput, match="task="):
        spurious(model, " ", ["shape"])


# ---- the shelf


def test_a_shelf_survives_writers_side_by_side_and_damage(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "shelf.sqlite"

    def write(which: int) -> None:
        for at in range(20):
            DiskCache(path).put({f"{which}-{at}": str(at).encode()})

    threads = [threading.Thread(target=write, args=(which,)) for which in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = [f"{which}-{at}" for which in range(4) for at in range(20)]
    assert DiskCache(path).get(names) == {name: name.split("-")[1].encode() for name in names}
    path.write_bytes(b"this is no database at all, not even nearly" * 100)
    assert DiskCache(path).get(["0-0"]) == {}
    DiskCache(path).put({"a": b"b"})
    assert DiskCache(path).get(["a"]) == {"a": b"b"}
    DiskCache(tmp_path / "file" / "x").put({"a": b"b"})
    (tmp_path / "plain").write_text("")
    DiskCache(tmp_path / "plain" / "x").put({"a": b"b"})  # its folder cannot be made: no error, nothing kept
    assert DiskCache(tmp_path / "plain" / "x").get(["a"]) == {}
    assert DiskCache(None).get(["a"]) == {}


def test_a_role_says_whether_it_is_a_name() -> None:
    assert [Role(name, 0.5).named for name in ("colour", "mixed", "unnamed", "")] == [True, False, False, False]
