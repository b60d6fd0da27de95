"""Decomposition, Table 2: the first five texts of heads.

clip-anatomy atlas val.store
"""

from panels import Setting

from clip_anatomy.results import text_table


def draw(on: Setting):
    """List the heads that explain most of themselves by five texts."""
    heads = sorted(on.atlas.heads, key=lambda one: -one.texts[min(4, len(one.texts) - 1)].cumulative)[:4]
    rows = [
        [*(("", "") if at else (head.name, head.role.name)), one.text, f"{one.gain:.0%}"]
        for head in heads
        for at, one in enumerate(head.texts[:5])
    ]
    return text_table(["head", "role", "text", ">adds"], rows, groups=True)
