"""Published data sets in small: the same folders, tables and file formats, with pictures drawn here."""

import csv
import pickle
from pathlib import Path

import numpy as np
from PIL import Image

SPECIES = ("001.Black_footed_Albatross", "002.Laysan_Albatross", "017.Cardinal", "036.Northern_Flicker")
PLACES = (60, 140, 60), (40, 90, 200)  # land is green, water is blue
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def bird(place: int, at: int, size: int = 48) -> Image.Image:
    """A bird-like spot before land or water; every one differs."""
    levels = np.random.default_rng(at).integers(-20, 20, (size, size, 3)) + np.array(PLACES[place])
    levels[size // 4 : size // 2, at % (size // 2) : at % (size // 2) + size // 4] = (220, 200, 40 + at % 100)
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))


def waterbirds(root: Path, each: int = 2, splits: int = 3) -> Path:
    """Waterbirds: `each` images per split and group. Water birds are the first two species."""
    rows = []
    for split in range(splits):
        for y in (0, 1):
            for place in (0, 1):
                for _ in range(each):
                    at = len(rows)
                    species = SPECIES[at % 2 if y else 2 + at % 2]
                    name = f"{species}/{species.partition('.')[2]}_{at:04d}.jpg"
                    (root / species).mkdir(parents=True, exist_ok=True)
                    bird(place, at).save(root / name)
                    rows.append((at + 1, name, y, split, place, f"/b/bamboo_forest/{at:08d}.jpg"))
    with (root / "metadata.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("img_id", "img_filename", "y", "split", "place", "place_filename"))
        table.writerows(rows)
    return root


def cub(root: Path, each: int = 3) -> Path:
    """CUB-200-2011: `each` images of each of four species, the last of each for testing, with attributes."""
    (root / "attributes").mkdir(parents=True)
    images, labels, splits, attributes = [], [], [], []
    for code, species in enumerate(SPECIES, 1):
        (root / "images" / species).mkdir(parents=True)
        for at in range(each):
            number = len(images) + 1
            name = f"{species}/{species.partition('.')[2]}_{at:04d}_{1000 + number}.jpg"
            bird(0, number).save(root / "images" / name)
            images.append(f"{number} {name}")
            labels.append(f"{number} {code}")
            splits.append(f"{number} {int(at < each - 1)}")
            attributes.append(f"{number} {1 + code % 2} 1 4 12.5")  # one bill shape, surely seen
            attributes.append(f"{number} {2 - code % 2} 0 4 3.1")  # the other one is not there
            attributes.append(f"{number} 3 1 2 1.0")  # a guess
            attributes.append(f"{number} 4 1 3 0 9.9")  # one of the published file's lines with a word too many
    for name, lines in {
        "images.txt": images,
        "image_class_labels.txt": labels,
        "train_test_split.txt": splits,
        "classes.txt": [f"{code} {species}" for code, species in enumerate(SPECIES, 1)],
        "attributes/image_attribute_labels.txt": attributes,
        "attributes/attributes.txt": [
            "1 has_bill_shape::dagger",
            "2 has_bill_shape::hooked_seabird",
            "3 has_wing_color::grey",
            "4 has_wing_color::buff",
        ],
    }.items():
        (root / name).write_text("\n".join(lines) + "\n")
    return root


def imagenet(root: Path, synsets: list[str], each: int = 2) -> Path:
    """ImageNet's validation images in synset folders, with numbers that do not follow the classes."""
    numbers = np.random.default_rng(0).permutation(each * len(synsets)) + 1
    for at, number in enumerate(numbers.tolist()):
        folder = root / synsets[at // each]
        folder.mkdir(parents=True, exist_ok=True)
        bird(at % 2, number).save(folder / f"ILSVRC2012_val_{number:08d}.JPEG")
    return root


def cifar_images(count: int, seed: int = 0) -> np.ndarray:
    """Flat images as the files hold them: planes of red, green, blue."""
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)


def python2_pickle(value) -> bytes:
    """A pickle of protocol 2 as Python 2 wrote it: texts and numpy's bytes as 8-bit strings, keys too."""
    out = bytearray(b"\x80\x02")

    def text(one: bytes) -> None:
        out.extend(b"U" + bytes([len(one)]) + one if len(one) < 256 else b"T" + len(one).to_bytes(4, "little") + one)

    def put(one) -> None:
        if isinstance(one, str):
            text(one.encode("latin-1"))
        elif isinstance(one, int):
            out.extend(b"J" + one.to_bytes(4, "little", signed=True))
        elif isinstance(one, list | tuple):
            out.extend(b"](" if isinstance(one, list) else b"(")
            for inner in one:
                put(inner)
            out.extend(b"e" if isinstance(one, list) else b"t")
        elif isinstance(one, dict):
            out.extend(b"}(")
            for key, inner in one.items():
                put(key)
                put(inner)
            out.extend(b"u")
        else:  # an array of bytes
            out.extend(b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n")
            put((0,))
            text(b"b")
            out.extend(b"tR(")
            put(1)
            put(tuple(one.shape))
            out.extend(b"cnumpy\ndtype\n")
            put(("u1", 0, 1))
            out.extend(b"R(")
            put(3)
            text(b"|")
            out.extend(b"NNN")
            put(-1)
            put(-1)
            put(0)
            out.extend(b"tb\x89")
            text(one.tobytes())
            out.extend(b"tb")

    put(value)
    return bytes(out + b".")


def cifar10(root: Path, count: int = 3, python: int = 2) -> Path:
    """CIFAR-10, Python version: five training files and one for testing, of `count` images."""
    dump = python2_pickle if python == 2 else lambda value: pickle.dumps(value, protocol=2 if python == 3 else 5)
    root.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(cifar10_files()):
        labels = [(number + at) % 10 for at in range(count)]
        batch = {
            "batch_label": f"batch {number}",
            "labels": labels,
            "data": cifar_images(count, number),
            "filenames": [f"{CIFAR10[label]}_s_{at:06d}.png" for at, label in enumerate(labels)],
        }
        (root / name).write_bytes(dump(batch))
    (root / "batches.meta").write_bytes(
        dump({"num_cases_per_batch": count, "label_names": list(CIFAR10), "num_vis": 3072})
    )
    return root


def cifar10_files() -> list[str]:
    return [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]


def cifar10_binary(root: Path, count: int = 3) -> Path:
    """The same images in the binary version."""
    root.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(cifar10_files()):
        images = cifar_images(count, number)
        labels = np.array([[(number + at) % 10] for at in range(count)], np.uint8)
        (root / f"{name}.bin").write_bytes(np.concatenate([labels, images], 1).tobytes())
    (root / "batches.meta.txt").write_text("\n".join(CIFAR10) + "\n\n")
    return root


FINE = tuple(f"fine_{n}" for n in range(100))
COARSE = tuple(f"coarse_{n}" for n in range(20))


def cifar100(root: Path, count: int = 4) -> Path:
    """CIFAR-100, Python version."""
    root.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(("train", "test")):
        fine = [(7 * at + number) % 100 for at in range(count)]
        batch = {
            "filenames": [f"f_s_{at:06d}.png" for at in range(count)],
            "batch_label": name,
            "fine_labels": fine,
            "coarse_labels": [label // 5 for label in fine],
            "data": cifar_images(count, number),
        }
        (root / name).write_bytes(python2_pickle(batch))
    (root / "meta").write_bytes(python2_pickle({"fine_label_names": list(FINE), "coarse_label_names": list(COARSE)}))
    return root


def cifar100_binary(root: Path, count: int = 4) -> Path:
    """The same images in the binary version, where the superclass comes first."""
    root.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(("train", "test")):
        fine = np.array([[(7 * at + number) % 100] for at in range(count)], np.uint8)
        records = np.concatenate([fine // 5, fine, cifar_images(count, number)], 1)
        (root / f"{name}.bin").write_bytes(records.tobytes())
    (root / "fine_label_names.txt").write_text("\n".join(FINE) + "\n")
    (root / "coarse_label_names.txt").write_text("\n".join(COARSE) + "\n")
    return root
