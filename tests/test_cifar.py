"""CIFAR in both of its formats, and the reader of pickles that runs nothing."""

import pickle
from pathlib import Path

import miniatures as mini
import numpy as np
import pytest

from clip_anatomy.data.open_dataset import open_dataset, picture_of
from clip_anatomy.data.pickle_reader import read_safe_pickle
from clip_anatomy.errors import BadInput


@pytest.mark.parametrize("python", [2, 3, 5])
def test_cifar10_of_both_versions_is_the_same(tmp_path, python):
    one = open_dataset(f"cifar10:{mini.cifar10(tmp_path / 'cifar-10-batches-py', python=python)}:partial")
    two = open_dataset(f"cifar10:{mini.cifar10_binary(tmp_path / 'b' / 'cifar-10-batches-bin').parent}:partial")
    a, b = list(one), list(two)
    assert one.count() == two.count() == len(a) == len(b) == 18
    assert [(p.id, p.label, p.path, p.meta["split"]) for p in a] == [
        (p.id, p.label, p.path, p.meta["split"]) for p in b
    ]
    assert [p.meta["split"] for p in a] == ["train"] * 15 + ["test"] * 3
    for at, (p, q) in enumerate(zip(a, b, strict=True)):
        flat = mini.cifar_images(3, at // 3)[at % 3]
        assert np.array_equal(p.data, q.data)
        assert p.data[5, 7].tolist() == [flat[5 * 32 + 7], flat[1024 + 5 * 32 + 7], flat[2048 + 5 * 32 + 7]]
        assert p.label == mini.CIFAR10[(at // 3 + at % 3) % 10]
        assert p.meta["filename"].startswith(p.label)
        assert np.array_equal(np.asarray(picture_of(one.spec, p.path, p.id)), p.data)
    assert open_dataset(f"cifar10:{tmp_path}:test:partial").count() == 3


def test_cifar100_has_classes_and_superclasses(tmp_path):
    a = list(open_dataset(f"cifar100:{mini.cifar100(tmp_path / 'p')}:partial"))
    b = list(open_dataset(f"cifar100:{mini.cifar100_binary(tmp_path / 'b')}:partial"))
    assert [(p.label, p.group) for p in a] == [(p.label, p.group) for p in b]
    assert (a[1].label, a[1].group) == ("fine 7", "coarse 1")
    assert all(np.array_equal(p.data, q.data) for p, q in zip(a, b, strict=True))


def test_whole_binary_files_are_counted_by_their_size(tmp_path):
    root = mini.cifar10_binary(tmp_path / "b")
    for name in mini.cifar10_files():
        with (root / f"{name}.bin").open("wb") as file:
            file.truncate(10_000 * 3073)  # takes no room on the disk
    assert open_dataset(f"cifar10:{root}").count() == 60_000
    (root / "data_batch_4.bin").unlink()
    with pytest.raises(BadInput, match="40,000 train images, 50,000 were expected; missing: data_batch_4.bin"):
        open_dataset(f"cifar10:{root}")
    (root / "data_batch_3.bin").write_bytes(b"12345")
    with pytest.raises(BadInput, match="5 bytes, a multiple of 3,073"):
        open_dataset(f"cifar10:{root}:partial")


def test_bad_copies_of_cifar_are_named(tmp_path):
    root = mini.cifar10(tmp_path / "p")
    with pytest.raises(BadInput, match="15 train images, 50,000 were expected; 3 test images, 10,000"):
        open_dataset(f"cifar10:{root}")
    with pytest.raises(BadInput, match=r"no copy of CIFAR-100.*type: cifar10:"):
        open_dataset(f"cifar100:{root}")
    whole = (root / "data_batch_2").read_bytes()
    (root / "data_batch_2").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match=r"data_batch_2 is damaged or no pickle"):
        open_dataset(f"cifar10:{root}:partial")
    (root / "data_batch_2").write_bytes(mini.python2_pickle({"data": mini.cifar_images(2), "labels": [1]}))
    with pytest.raises(BadInput, match="another number of labels"):
        open_dataset(f"cifar10:{root}:partial")
    (root / "data_batch_2").write_bytes(mini.python2_pickle({"data": mini.cifar_images(2), "labels": [1, 10]}))
    with pytest.raises(BadInput, match="labels 1 to 10 for 10 class names"):
        open_dataset(f"cifar10:{root}:partial")
    (root / "data_batch_2").write_bytes(mini.python2_pickle({"data": mini.cifar_images(2)}))
    with pytest.raises(BadInput, match="no batch of CIFAR"):
        open_dataset(f"cifar10:{root}:partial")


# ---- the reader that runs nothing


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (Path(self.mark),))


class Built:
    def __setstate__(self, state):
        raise AssertionError("run")

    def __getstate__(self):
        return {"x": 1}


def malicious(mark):
    """Pickles that do something when they are read, by every way a pickle has."""
    call = b"cos\nsystem\n(S'touch " + mark.encode() + b"'\ntR."
    return {
        "reduce": pickle.dumps({"data": Evil(mark)}, protocol=2),
        "reduce, protocol 4": pickle.dumps({"data": Evil(mark)}, protocol=4),
        "protocol 0": call,
        "inst": b"(S'touch " + mark.encode() + b"'\nios\nsystem\n.",
        "obj": b"(cos\nsystem\nS'touch " + mark.encode() + b"'\no.",
        "newobj": b"\x80\x02cos\nsystem\nS'touch " + mark.encode() + b"'\n\x85\x81.",
        "extension": b"\x80\x02\x82\x01.",
        "persistent": b"Ptouch\n.",
        "build": pickle.dumps({"data": Built()}, protocol=2),
        "eval": b"c__builtin__\neval\n(S'1'\ntR.",
        "a name that looks like numpy's": b"cnumpy.core.multiarray\n_reconstruct.__globals__\n.",
        "numpy's own loader": b"cnumpy\nload\n(S'x'\ntR.",
        "a function of numpy.core": b"cnumpy.core.multiarray\nscalar\n(S'x'\ntR.",
        "hidden by a good array": mini.python2_pickle({"data": mini.cifar_images(1)})[:-1] + b"0" + call,
        "encode with another codec": b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00xX\x03\x00\x00\x00zip\x86R.",
        "a dtype of objects": b"\x80\x02cnumpy\ndtype\nU\x01O\x85R.",
    }


@pytest.mark.parametrize("kind", list(malicious("x")))
def test_nothing_in_a_pickle_is_run(tmp_path, kind):
    mark = tmp_path / "was-run"
    root = mini.cifar10(tmp_path / "p")
    (root / "test_batch").write_bytes(malicious(str(mark))[kind])
    with pytest.raises(BadInput, match="Nothing of it was run|damaged or no pickle"):
        read_safe_pickle(root / "test_batch")
    with pytest.raises(BadInput):
        open_dataset(f"cifar10:{root}:partial")
    assert not mark.exists()


@pytest.mark.parametrize(
    "kind", ["reduce", "reduce, protocol 4", "protocol 0", "inst", "obj", "hidden by a good array"]
)
def test_these_files_do_harm_when_pickle_reads_them(tmp_path, kind):
    mark = tmp_path / "was-run"
    pickle.loads(malicious(str(mark))[kind], encoding="latin-1")
    assert mark.exists()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_are_read_as_pickle_reads_them(tmp_path, protocol):
    value = {
        "text": "naïve",
        "bytes": b"\x00\xff",
        "list": [1, -2, 3000, 2**40, 1.5, None, True, False],
        "nested": {"a": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)]},
        "array": np.arange(12, dtype=np.int32).reshape(3, 4),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    }
    (tmp_path / "v").write_bytes(pickle.dumps(value, protocol=protocol))
    found = read_safe_pickle(tmp_path / "v")
    for name in ("text", "bytes", "list", "nested"):
        assert found[name] == value[name]
    for name in ("array", "fortran"):
        assert np.array_equal(found[name], value[name])
        assert found[name].dtype == value[name].dtype


@pytest.mark.parametrize(
    "data",
    [
        b"", b"no pickle", b"\x80\x02.", b"\x80\x02]a.", b"\x80\x02h\x05.", b"\x80\x02Ne.", b"\x80\x02}Ns.", b"\x80\x02t.",
        b"\x80\x02(e.", b"\x80\x02K\x01.", b"\x80\x02}}K\x01s.", b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fx.", b"\x80\x02q\x00.",
    ],
)  # fmt: skip
def test_broken_pickles_are_refused_by_name(tmp_path, data):
    (tmp_path / "v").write_bytes(data)
    with pytest.raises(BadInput, match="/v is"):
        read_safe_pickle(tmp_path / "v")
