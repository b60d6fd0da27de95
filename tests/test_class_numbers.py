"""Labels that are numbers count the class names from 0, and nobody takes digits for class texts without being told."""

from pathlib import Path

import pytest
import torch
from PIL import Image

import clip_anatomy as ca
from clip_anatomy.cli.options import print_notes
from clip_anatomy.errors import BadInput
from clip_anatomy.store.store import Store
from clip_anatomy.studies.store_columns import codes_in
from clip_anatomy.studies.zero_shot_task import ZeroShotTask, ablation_task

pytestmark = pytest.mark.usefixtures("one_thread")
CLIP = ca.load("demo", parity=False)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("numbers")
    for i in range(4):
        Image.new("RGB", (64, 64), (60 * i, 20, 90)).save(folder / f"{i}.png")
    rows = "".join(f"{i}.png,{i % 2},{i % 2}.0,{1 + i % 2}\n" for i in range(4))
    (folder / "metadata.csv").write_text(f"file_name,y,f,one_based\n{rows}")
    ca.index(CLIP, folder, folder / "store")
    return folder / "store"


def task(store: Path, **options: str) -> ZeroShotTask:
    return ablation_task(Store.open(store), lambda: CLIP, **options)


@pytest.mark.parametrize("label", ["label", "f"])
def test_numbers_count_the_names_that_are_given(store: Path, label: str) -> None:
    found = task(store, label=label, classes="a star, a bird")
    assert found.labels.tolist() == [0, 1, 0, 1]
    unit = torch.nn.functional.normalize(CLIP.encode_text(["a photo of a a star.", "a photo of a a bird."]), dim=-1)
    torch.testing.assert_close(found.texts, unit)
    assert (
        f"labels of column {label!r} are numbers, which count the classes from 0: 0 is a star, 1 is a bird"
        in found.notes
    )


def test_digits_as_class_texts_are_said(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (note,) = task(store).notes
    assert "class names are numbers (0, 1)" in note
    assert ": classes='name of 0, ...'" in note
    print_notes([note])
    assert ": --classes 'name of 0, ...'" in capsys.readouterr().err


def test_numbers_beyond_the_names_are_refused_with_a_count(store: Path) -> None:
    with pytest.raises(BadInput, match="Numbers count the classes from 0: type classes= with 3 names") as refused:
        task(store, label="one_based", classes="a star, a bird")
    assert "classes='" not in str(refused.value)


def test_a_name_wins_over_a_place() -> None:
    assert codes_in(["1", "0"], ["1", "0"], "digit").tolist() == [0, 1]
    assert codes_in(["3", "1"], ["one", "1"], "digit", strict=False).tolist() == [-1, 1]
