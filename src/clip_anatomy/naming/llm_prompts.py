"""Prompts for a language model, and how its answers are read: a head's role, more texts like these, spurious cues.

The prompts are our own. Every answer is kept with the atlas as it came, so that a reader can judge it.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from clip_anatomy.errors import BadInput
from clip_anatomy.naming.language_model import LanguageModel, LlmAnswer
from clip_anatomy.naming.pool import Pool
from clip_anatomy.naming.roles import UNNAMED, Role
from clip_anatomy.naming.textspan_result import TextSpanResult
from clip_anatomy.progress import Progress, silent

__all__ = ["CueJudgement", "LlmRole", "common_role", "more_like", "name_heads", "spurious"]

LONGEST_ROLE = 40
LONGEST_TEXT = 160

ROLE_PROMPT = """Below are descriptions of images. They were found to go with one and the same part of an image model, the most fitting \
first; the percentage says how much of that part's behaviour each one accounts for.

{texts}

What is common between all these image descriptions? Name the one visual property they are about, in one to three lower-case words.
{known}If they have nothing in common, the name is "unclear"; give the later, smaller ones less weight.
Answer with one JSON object and nothing else: {{"role": "...", "confidence": a number from 0 to 1, "why": "one short sentence"}}"""

KNOWN_PROMPT = "If one of these names fits, use exactly that one: {known}.\n"

MORE_PROMPT = """Here are some short image descriptions:

{texts}

Write {n} new ones of the same kind: about the same visual properties, in the same plain style, each different from all others and \
not longer than fifteen words. One description per line, no numbers, no quotation marks, nothing else."""

SPURIOUS_PROMPT = """A vision model is used for this task: {task}.
One part of the model responds to this cue in the image: {cue}.

Can {cue} be a spurious cue for {task}? A cue is spurious if it may go together with the right answer in the training pictures without \
being a reason for it, so that the model fails where the two come apart.
Answer with one JSON object and nothing else: {{"spurious": "yes", "no" or "unclear", "why": "one short sentence"}}"""


@dataclass(frozen=True)
class LlmRole:
    """A role as a language model names it.

    Attributes:
        role: the name, lower case; "mixed" where it finds nothing in common, "" where its answer could not be read.
        confidence: as it says, 0 … 1.
        why: its reason.
        answer: as it came.
    """

    role: str
    confidence: float
    why: str
    answer: LlmAnswer


@dataclass(frozen=True)
class CueJudgement:
    """Whether a cue may mislead in a task.

    Attributes:
        cue: the cue.
        task: the task.
        spurious: "yes", "no" or "unclear".
        why: the reason.
        answer: as it came.
    """

    cue: str
    task: str
    spurious: str
    why: str
    answer: LlmAnswer


def common_role(model: LanguageModel, texts: Sequence[tuple[str, float]], known: Sequence[str] = ()) -> LlmRole:
    """Ask what a head's texts have in common.

    Args:
        model: the language model.
        texts: (text, share of the head's variance that it adds), best first.
        known: names to prefer, so that heads with one role get one name.

    Raises:
        EndpointError: no answer.
        BadInput: no texts.
    """
    if not texts:
        raise BadInput("a head without texts has no role to ask for: span it first, textspan(moments, pool)")
    lines = "\n".join(f"- {_plain(text)} ({100 * share:.0f} %)" for text, share in texts)
    names = KNOWN_PROMPT.format(known=", ".join(map(_spaced, known))) if known else ""
    answer = model.ask(ROLE_PROMPT.format(texts=lines, known=names), most_tokens=200)
    fields = _first_json_object(answer.text)
    role = re.sub(r"[^\w &/-]+", "", str(fields.get("role", ""))).strip().lower()[:LONGEST_ROLE]
    role = {_spaced(name): name for name in known}.get(role, role)
    role = "mixed" if role in ("unclear", "none", "mixed", "nothing", "unknown") else role
    return LlmRole(role, _share(fields.get("confidence")), _plain(str(fields.get("why", "")))[:300], answer)


def name_heads(
    model: LanguageModel,
    head_roles: Mapping[tuple[int, int], Role],
    span: TextSpanResult,
    texts: Pool,
    *,
    progress: Progress | None = None,
) -> tuple[dict[tuple[int, int], Role], list[LlmAnswer]]:
    """Ask for the role of every head that is not unnamed; where an answer cannot be read, the role by texts stays.

    Args:
        model: the language model.
        head_roles: (layer, head) → role by texts.
        span: picks and figures.
        texts: the pool behind them; its properties are the names to prefer.
        progress: called after each head.

    Returns:
        (layer, head) → role, and the answers as they came.

    Raises:
        EndpointError: no answer.
    """
    tell = progress or silent
    renamed, answers = dict(head_roles), list[LlmAnswer]()
    known = tuple(dict.fromkeys(name for name in texts.properties if name))
    heads = [at for at, role in head_roles.items() if role.name != UNNAMED]
    for done, (layer, head) in enumerate(heads, 1):
        picks = span.picks(layer, head, texts.texts)[: span.top_k]
        before = [0.0, *(pick.cumulative for pick in picks)]
        role = common_role(
            model, [(pick.text, pick.cumulative - was) for pick, was in zip(picks, before, strict=False)], known
        )
        answers.append(role.answer)
        mine = head_roles[layer, head]
        if role.role:
            renamed[layer, head] = replace(
                mine, name=role.role, confidence=role.confidence, source=model.name, why=role.why, raw=role.answer.text
            )
        else:
            renamed[layer, head] = replace(mine, raw=role.answer.text)
        tell("asking the language model", done, len(heads))
    return renamed, answers


def more_like(model: LanguageModel, texts: Sequence[str], n: int) -> tuple[list[str], LlmAnswer]:
    """Ask for more descriptions like these.

    Args:
        model: the language model.
        texts: descriptions to start from.
        n: how many new ones to ask for.

    Returns:
        At most n new descriptions, none of them given; and the answer as it came.
    """
    lines = "\n".join(f"- {_plain(text)}" for text in texts)
    answer = model.ask(MORE_PROMPT.format(texts=lines, n=n), most_tokens=40 * n + 100)
    given = {text.strip().lower() for text in texts}
    new_texts: dict[str, str] = {}
    for line in answer.text.splitlines():
        text = re.sub(r"^\s*(?:[-*•–]|\(?\d+[.):])\s*", "", line).strip(" .\"'“”`")
        if text and len(text) <= LONGEST_TEXT and not text.endswith(":") and text.lower() not in given:
            new_texts.setdefault(text.lower(), text)
    return list(new_texts.values())[:n], answer


def spurious(model: LanguageModel, task: str, cues: Sequence[str]) -> list[CueJudgement]:
    """Ask of each cue whether it can be a spurious cue for a task.

    Args:
        model: the language model.
        task: what the model is used for, such as "telling landbirds from waterbirds".
        cues: what heads respond to, such as roles.

    Raises:
        EndpointError: no answer.
        BadInput: no task.
    """
    if not task.strip():
        raise BadInput('no task was given. Type, for example: task="telling landbirds from waterbirds"')
    judgements: list[CueJudgement] = []
    for cue in cues:
        answer = model.ask(SPURIOUS_PROMPT.format(task=_plain(task), cue=_plain(cue)), most_tokens=150)
        fields = _first_json_object(answer.text)
        verdict = str(fields.get("spurious", "")).strip().lower()
        if verdict not in ("yes", "no"):
            verdict = {"true": "yes", "false": "no"}.get(verdict, "unclear")
        judgements.append(CueJudgement(cue, task, verdict, _plain(str(fields.get("why", "")))[:300], answer))
    return judgements


def _first_json_object(text: str) -> dict[str, Any]:
    """Return the first JSON object in an answer, however it is wrapped; empty where there is none."""
    decoder = json.JSONDecoder()
    for at in (match.start() for match in re.finditer(r"\{", text)):
        try:
            value, _ = decoder.raw_decode(text[at:])
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            return value
    return {}


def _share(value: object) -> float:
    try:
        number = float(str(value).rstrip("% "))
    except ValueError:
        return 0.0
    if math.isnan(number):
        return 0.0
    return min(1.0, max(0.0, number / 100 if number > 1 else number))


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _plain(text: str) -> str:
    """Return one line, so that a description cannot pose as a part of the prompt."""
    return " ".join(text.split())
