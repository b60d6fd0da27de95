"""What protocols send to workers: the entries of every data set with masks, labels or phrases."""

import pickle
from pathlib import Path
from typing import Any

import minis
import numpy as np
import pytest

from clip_anatomy.data.masked_datasets import open_masked

WRITERS: dict[str, Any] = {**minis.MASKED, **minis.LABELLED, **minis.REFERRING}


@pytest.mark.parametrize("name", WRITERS)
def test_entries_read_the_same_in_another_process(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path)
    entry = open_masked(name, tmp_path).entries[0]
    sent = pickle.loads(pickle.dumps(entry))
    assert sent.id == entry.id
    for read in ("picture", "mask"):
        if hasattr(entry, read):
            np.testing.assert_array_equal(np.asarray(getattr(sent, read)()), np.asarray(getattr(entry, read)()))
