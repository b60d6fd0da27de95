"""Messages of the Python API in the words of the command line."""

import re
import shlex

QUOTES = "'\""
_NAMES = """
adaptive address against allow_urls also approximate area atlas background batch by calibrate classes colours convention cost count cue
descriptors details device draws dtype effect engine epochs expected focus folds forwards group heads host how images k keep kept label
labels last layers like llm llm_model logit_scale masks means measure method mode model most names other out over part parts
penalty pictures pool port prompts proposals protocol prune prune_all refine registers released resamples rounds sanity_pictures seed
select side size split stride study task templates text texts threshold token top tower transport truth weights where window without workers yes
"""
OPTIONS = frozenset(_NAMES.split())  # keywords of Python that are options of some verb; a test holds the two together
_HERE = {
    "'with clip_anatomy.allow_network():' around it": "--allow-network",
    "or weights=FILE": "or add --weights FILE",
    "Type: load(model, tokenizer=...), or put": "Put",
}
_OPENED = re.compile(r"(?:clip_anatomy\.)?load\('(?P<spec>[^']+)'(?:, weights=(?P<weights>'[^']+'|\w+))?\)")
_CALL = re.compile(
    r"(?:clip_anatomy\.)?\b(?P<verb>explain|heatmap|segment|refer|concepts|mutual)\(clip, (?P<given>\[?'[^']*'\]?(?:, '[^']*')*)\)"
)
_FILES = re.compile(r"the files in it: sorted\(Path\([^)]*\)\.glob\('\*\.jpg'\)\)")
_NAMED = rf"(?P<name>{'|'.join(sorted(OPTIONS, key=len, reverse=True))})="
_VALUE = r"""(?P<value>'[^']*'|"[^"]*"|[\w-](?:[\w./:+-]*\w)?(?![\w(\[]|\.\w)|(?=[\s.,;:)]|$))"""
_OPTION = re.compile(rf"(?P<call>\w\([^()]*\))|(?<![\w.'\"“/=-]){_NAMED}{_VALUE}(?P<next>,(?= \w+=))?")
_PYTHON_ALONE = re.compile(r"(?<![\w.])(?=load\((?:\.\.\.|model, tokenizer))")


def in_cli_words(message: str) -> str:
    """Put what a message tells people to type into options of the command line, on one line.

    Example:
        >>> in_cli_words("none is fetched. Type: allow_urls=True")
        'none is fetched. Type: --allow-urls'
        >>> in_cli_words("no network. Type: load('open_clip:RN50', weights=FILE)")
        'no network. Type: --model open_clip:RN50 --weights FILE'
        >>> in_cli_words("study='x' is not known. Leave where= away"), in_cli_words("type: load(..., parity=False)")
        ('--study x is not known. Leave --where away', 'type: in Python load(..., parity=False)')
        >>> in_cli_words("Type cue='sky, water', most=10; or leave approximate=True away")
        "Type --cue 'sky, water' --most 10; or leave --approximate away"
        >>> in_cli_words("one picture at a time. Type: refer(clip, 'photo.jpg', 'a dog')")
        "one picture at a time. Type: clip-anatomy refer photo.jpg 'a dog'"
    """
    message = _CALL.sub(_typed_call, _FILES.sub("one of its files", _OPENED.sub(_opening_options, message)))
    for there, here in _HERE.items():
        message = message.replace(there, here)
    message = _OPTION.sub(_option, message)
    return " ".join(_PYTHON_ALONE.sub("in Python ", message).split())


def _option(match: re.Match[str]) -> str:
    """Put one keyword and its value as an option; calls, which only Python has, stay."""
    if match["call"]:
        return match["call"]
    flag, value = f"--{match['name'].replace('_', '-')}", match["value"]
    if value in ("", "True"):
        return flag if value else flag + (match["next"] or "")
    plain = value[1:-1] if value[0] in QUOTES else value
    return f"{flag} {plain if shlex.quote(plain) == plain else value}"


def _typed_call(match: re.Match[str]) -> str:
    """Put a call of a verb as it is typed: its pictures, then its text."""
    return shlex.join(["clip-anatomy", match["verb"], *re.findall(r"'([^']*)'", match["given"])])


def _opening_options(match: re.Match[str]) -> str:
    weights = "" if match["weights"] is None else f" --weights {match['weights'].strip(QUOTES)}"
    return f"--model {match['spec']}{weights}"
