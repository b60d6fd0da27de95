"""Reviewers of the decomposition: what does a linear classifier read off the embedding, and off parts of it?

clip-anatomy probe val.store --last 1,4 --without role=colour
"""

from panels import Setting

import clip_anatomy as ca
from clip_anatomy.results import text_table


def draw(on: Setting):
    """Train on the whole embedding, on what the last layers wrote, and on all but the heads of one role."""
    found = ca.probe(on.store, last="1,4", without=["role=shape"], atlas=on.atlas)
    rows = [[one.name, f"{100 * one.accuracy:.1f}", f"{100 * one.worst[1]:.1f}"] for one in found.rows]
    return text_table(["what the probe sees", ">accuracy, %", ">worst group, %"], rows)
