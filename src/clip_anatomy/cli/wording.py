"""Hints of the Python API in the words of the command line."""

_HERE = {
    "allow_urls=True": "--allow-urls",
    "'with clip_anatomy.allow_network():' around it": "--allow-network",
    "device='cpu'": "--device cpu",
    "or weights=FILE": "or add --weights FILE",
    "weights=FILE": "--weights FILE",
    "texts=20 images=6 resamples=50 rounds=6": "--texts 20 --images 6 --resamples 50 --rounds 6",
}


def in_cli_words(message: str) -> str:
    """Put what a message tells people to type into options of the command line, on one line.

    Example:
        >>> in_cli_words("none is fetched. Type: allow_urls=True")
        'none is fetched. Type: --allow-urls'
    """
    for there, here in _HERE.items():
        message = message.replace(there, here)
    return " ".join(message.split())
