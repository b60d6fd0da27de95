"""Hints of the Python API in the words of the command line."""

import re

QUOTE = "'"
_HERE = {
    "allow_urls=True": "--allow-urls",
    "'with clip_anatomy.allow_network():' around it": "--allow-network",
    "prune_all=True": "--prune-all",
    "device='cpu'": "--device cpu",
    "or weights=FILE": "or add --weights FILE",
    "weights=FILE": "--weights FILE",
    "texts=20 images=6 resamples=50 rounds=6": "--texts 20 --images 6 --resamples 50 --rounds 6",
}
_OPENED = re.compile(r"(?:clip_anatomy\.)?load\('(?P<spec>[^']+)'(?:, weights=(?P<weights>'[^']+'|\w+))?\)")
_OPTION = re.compile(
    r"(?P<lead>[Tt]ype:? |\bor )(?P<name>size|window|stride|registers|threshold|batch|method|how|effect|kept|forwards|penalty|count)=(?P<value>'[\w-]+'|\w+(?:\.\d+)?)"
)
_PYTHON_ALONE = re.compile(r"(?<![\w.])(?=load\(\.\.\.)")


def in_cli_words(message: str) -> str:
    """Put what a message tells people to type into options of the command line, on one line.

    Example:
        >>> in_cli_words("none is fetched. Type: allow_urls=True")
        'none is fetched. Type: --allow-urls'
        >>> in_cli_words("no network. Type: load('open_clip:RN50', weights=FILE)")
        'no network. Type: --model open_clip:RN50 --weights FILE'
        >>> in_cli_words("leaves gaps. Type: window=112"), in_cli_words("type: load(..., parity=False)")
        ('leaves gaps. Type: --window 112', 'type: in Python load(..., parity=False)')
    """
    message = _OPENED.sub(_opening_options, message)
    for there, here in _HERE.items():
        message = message.replace(there, here)
    message = _OPTION.sub(lambda found: f"{found['lead']}--{found['name']} {found['value'].strip(QUOTE)}", message)
    return " ".join(_PYTHON_ALONE.sub("in Python ", message).split())


def _opening_options(found: re.Match[str]) -> str:
    weights = found["weights"]
    return f"--model {found['spec']}{'' if weights is None else f' --weights {weights.strip(QUOTE)}'}"
