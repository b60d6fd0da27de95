"""Atlases with a language model: names, a growing pool, runs that go on, answers that cannot be read."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from atlases import asked, demo, one_thread, server
from chat import Server

from clip_anatomy.errors import EndpointError
from clip_anatomy.naming.build_atlas import atlas

__all__ = ["demo", "one_thread", "server"]  # fixtures


# ---- a language model


def naming(question: str) -> str:
    if "What is common" in question:
        role = "texture of things" if "strip" in question else "unclear"
        return json.dumps({"role": role, "confidence": 0.75, "why": "they say so"})
    if "spurious" in question:
        return json.dumps({"spurious": "yes", "why": "it comes along"})
    return "a striped object in the snow\na dotted bird\nsomething checkered at night"


def test_a_language_model_names_heads_and_grows_the_pool(demo: SimpleNamespace, server: Server, tmp_path: Path) -> None:
    server.answer = naming
    model = asked(server, tmp_path, price=(1.0, 2.0))
    settings: dict[str, Any] = {
        "resamples": 0,
        "picks": 0,
        "cache": demo.texts,
        "llm": model,
        "adaptive": True,
        "rounds": 1,
    }
    found = atlas(demo.store, demo.clip, task="counting things", **settings)
    named = [head.role for head in found.heads if head.role.source == "tiny"]
    assert len(named) == sum(head.role.name != "unnamed" for head in found.heads)
    assert {role.name for role in named} <= {"texture of things", "mixed"}
    assert all(role.why == "they say so" and json.loads(role.raw)["confidence"] == 0.75 for role in named)
    assert all(role.shares for role in named), "what the texts say stays beside it"
    assert found.curve[1].texts == found.curve[0].texts + 3
    assert found.cues == (("texture of things", "yes", "it comes along"),)
    assert "questions asked, 0 answered from disk" in found.llm_usage
    assert "cost" in found.llm_usage
    count = len(server.seen)
    again = atlas(demo.store, demo.clip, task="counting things", **settings)
    assert len(server.seen) == count
    assert "language model: 0 questions asked" in again.llm_usage
    assert again.heads == found.heads


def test_a_stopped_run_goes_on_where_the_language_model_fell_silent(
    demo: SimpleNamespace, server: Server, tmp_path: Path
) -> None:
    def tired(question: str) -> str:
        return naming(question) if len(server.seen) <= 9 else ""

    server.answer = tired
    model = asked(server, tmp_path, tries=2)
    settings: dict[str, Any] = {"resamples": 0, "picks": 0, "cache": demo.texts, "llm": model}
    with pytest.raises(EndpointError, match="What was answered before is kept"):
        atlas(demo.store, demo.clip, **settings)
    first = {json.dumps(body["messages"]) for _, _, body in server.seen[:9]}
    server.seen.clear()
    server.answer = naming
    atlas(demo.store, demo.clip, **settings)
    assert not first & {json.dumps(body["messages"]) for _, _, body in server.seen}


def test_answers_that_cannot_be_read_leave_the_role_by_texts(
    demo: SimpleNamespace, server: Server, tmp_path: Path
) -> None:
    server.answer = lambda _: "I would say they are colourful."
    found = atlas(demo.store, demo.clip, resamples=0, picks=0, cache=demo.texts, llm=asked(server, tmp_path))
    for mine, theirs in zip(demo.atlas.heads, found.heads, strict=True):
        assert replace(theirs.role, raw="") == mine.role
    assert {head.role.raw for head in found.heads if head.role.name != "unnamed"} == {"I would say they are colourful."}
