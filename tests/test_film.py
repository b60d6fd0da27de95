"""Films: maps equal to each frame's own, one scale and one level for all of it, files that other programs play, memory that does not grow."""

import json
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

import clip_anatomy as ca
from clip_anatomy.cli.main import main
from clip_anatomy.data.film import film_of
from clip_anatomy.data.picture import ImageData, Picture
from clip_anatomy.data.video_file import Video
from clip_anatomy.data.world.scenes import World
from clip_anatomy.errors import BadImage, BadInput, BadSpec
from clip_anatomy.maps.map_result import Maps
from clip_anatomy.report.film_files import write_gif, write_mp4
from clip_anatomy.report.film_folder import _scale
from clip_anatomy.report.map_overlay import shades_of

pytestmark = pytest.mark.usefixtures("one_thread")

FRAMES = 21  # more than a batch
TEXTS = ["a red circle", "a blue star"]


@pytest.fixture(scope="module")
def clip() -> ca.Clip:
    return ca.load("demo")


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    """A window that wanders over a drawn picture."""
    scenes = World(split="test", length=4).batch(np.arange(4))
    wide = np.concatenate([np.concatenate(list(scenes.images[:2]), 1), np.concatenate(list(scenes.images[2:]), 1)])
    return [np.ascontiguousarray(wide[i : i + 96, 2 * i : 2 * i + 80]) for i in range(FRAMES)]


@pytest.fixture(scope="module")
def folder(frames: list[np.ndarray], tmp_path_factory: Any) -> Path:
    """Frames as people number them: frame-10 stands before frame-2 in the order of letters."""
    place = tmp_path_factory.mktemp("frames")
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(place / f"frame-{number}.png")
    return place


@pytest.fixture(scope="module")
def film(clip: ca.Clip, folder: Path, tmp_path_factory: Any) -> Any:
    return ca.film_maps(clip, folder, TEXTS, tmp_path_factory.mktemp("maps") / "maps.npy", size="whole")


def test_every_frame_has_its_own_maps_in_the_order_of_the_numbers(
    clip: ca.Clip, frames: list[np.ndarray], film: Any
) -> None:
    alone = ca.heatmap(clip, [Image.fromarray(frame) for frame in frames], TEXTS, size="whole")
    np.testing.assert_allclose(film.values, alone.values, atol=1e-6)
    np.testing.assert_array_equal(np.load(film.file, mmap_mode="r"), film.values)
    walked = list(film)
    assert len(walked) == len(film) == FRAMES
    for maps, frame, values in zip(walked, frames, alone.values, strict=True):
        np.testing.assert_array_equal(np.asarray(maps.pictures[0].read()), frame)
        torch.testing.assert_close(maps.values[0], values, atol=1e-6, rtol=0)
    assert [Path(maps.names[0]).name for maps in walked[:12:9]] == ["frame-0.png", "frame-9.png"]
    highest = alone.values.amax((2, 3))
    assert [one["highest_frame"] for one in film.to_dict()["maps"]] == highest.argmax(0).tolist()
    assert film.method == "decomposition"
    assert film.subtracted


def test_one_scale_for_all_frames_is_that_of_all_maps_at_once(film: Any, monkeypatch: Any) -> None:
    everything = Maps(torch.from_numpy(np.array(film.values)), film.method, film.texts, None, None, film.run)
    monkeypatch.setattr("clip_anatomy.maps.film_maps.AT_ONCE", 4)
    by_pieces, at_once = _scale(film), shades_of(everything)
    assert by_pieces.limits == at_once.limits
    assert by_pieces.ends == at_once.ends


def test_what_is_written(film: Any, tmp_path: Path) -> None:
    pytest.importorskip("av")
    film.save(tmp_path / "drawn")
    names = {path.name for path in (tmp_path / "drawn").iterdir()}
    texts = ["00-a-red-circle", "01-a-blue-star"]
    assert names == {"index.html", "film.json", *texts, *(f"{name}.{end}" for name in texts for end in ("gif", "mp4"))}
    known = json.loads((tmp_path / "drawn" / "film.json").read_text())
    assert (known["frames"], known["width"], known["height"]) == (FRAMES, 80, 96)
    drawn = sorted((tmp_path / "drawn" / texts[0]).iterdir())
    assert [path.name for path in drawn] == [f"{n:06d}.png" for n in range(FRAMES)]
    with Image.open(tmp_path / "drawn" / f"{texts[0]}.gif") as gif:
        shown = [np.asarray(frame.convert("RGB"), float) for frame in ImageSequence.Iterator(gif)]
        assert gif.info["duration"] == 100  # ten a second
        assert gif.info["loop"] == 0
    played = [np.asarray(one.data, float) for one in Video.of(tmp_path / "drawn" / f"{texts[0]}.mp4")]
    assert len(shown) == len(played) == FRAMES
    for number, path in enumerate(drawn):
        own = np.asarray(Image.open(path), float)
        assert np.abs(shown[number] - own).mean() < 3  # 255 colours for the whole film
        high, wide = played[number].shape[:2]
        assert np.abs(played[number] - own[:high, :wide]).mean() < 6
    page = (tmp_path / "drawn" / "index.html").read_text()
    assert page.count('<p class="player" hidden>') == page.count("<video controls") == len(texts)
    assert "video.controls = false" in page  # the browser's lie over the legend
    assert f'src="{texts[0]}.mp4"' in page
    film.save(tmp_path / "drawn", pictures=False, colours="heat")  # takes the place of the first
    assert not (tmp_path / "drawn" / texts[0]).exists()
    assert (tmp_path / "drawn" / f"{texts[0]}.gif").exists()


def test_masks_are_cut_at_one_level_for_the_whole_film(film: Any, tmp_path: Path) -> None:
    film.save(tmp_path / "masks", threshold="mean", background=1)
    known = json.loads((tmp_path / "masks" / "film.json").read_text())["masks"]
    every = torch.from_numpy(np.array(film.values))
    apart = every[:, 0] - every[:, 1]  # one text against one background
    assert known["level"] == pytest.approx(float(apart.mean()), abs=1e-6)
    for number, maps in enumerate(film):
        labels = np.asarray(Image.open(tmp_path / "masks" / "masks" / f"{number:06d}.png"))
        pixels = maps.on_picture()
        expected = (pixels[0] - pixels[1] > known["level"]).numpy()
        np.testing.assert_array_equal(labels > 0, expected)
    assert len(list((tmp_path / "masks" / "painted").iterdir())) == FRAMES


class Endless:
    """Frames that are made when they are asked for, and tell how many of them are held at once."""

    spec = "endless"

    def __init__(self, count: int) -> None:
        self.frames, self.alive, self.most = count, 0, 0

    def _gone(self) -> None:
        self.alive -= 1

    def __iter__(self) -> Iterator[Picture]:
        for number in range(self.frames):
            image = Image.new("RGB", (256, 192), (number % 256, 90, 120))
            self.alive += 1
            self.most = max(self.most, self.alive)
            weakref.finalize(image, self._gone)
            yield Picture(f"frame {number}", image)

    def count(self) -> int:
        return self.frames

    def check(self) -> None: ...

    def fetch(self, path: str) -> ImageData:
        raise AssertionError(path)


def resident() -> float:
    """Megabytes that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_frames(clip: ca.Clip, tmp_path: Path) -> None:
    grown = {}
    for count in (40, 240):  # the first also warms up
        source = Endless(count)
        before = resident()
        found = ca.film_maps(clip, source, TEXTS[:1], tmp_path / "maps.npy")
        found.save(tmp_path / f"drawn-{count}", pictures=False)
        grown[count] = resident() - before
        assert len(found) == count
        assert source.most <= 34  # two batches of 16, and those on their way
    assert grown[240] < 15  # 200 frames more are 29 MB of pixels


def test_videos_are_read_as_they_are_shown(frames: list[np.ndarray], clip: ca.Clip, tmp_path: Path) -> None:
    pytest.importorskip("av")
    paths = []
    for number, frame in enumerate(frames):
        paths.append(tmp_path / f"{number:03d}.png")
        Image.fromarray(frame).save(paths[-1])
    write_mp4(paths, tmp_path / "walk.mp4", 5.0)
    video = Video.of(tmp_path / "walk.mp4")
    assert video.rate == pytest.approx(5)
    found = list(video)
    assert [one.id for one in found[:2]] == ["walk.mp4#000000", "walk.mp4#000001"]
    for one, frame in zip(found, frames, strict=True):
        assert np.abs(np.asarray(one.data, float) - frame).mean() < 8
    assert np.array_equal(np.asarray(video.fetch("7")), np.asarray(found[7].data))
    with pytest.raises(BadImage, match="has no frame 99"):
        video.fetch("99")
    some = [one.path for one in Video.of(tmp_path / "walk.mp4", every=2.0)]
    assert some == ["0", "3", "5", "8", "10", "13", "15", "18", "20"]  # 0, 0.5, 1, … seconds at five a second
    maps = ca.heatmap(clip, tmp_path / "walk.mp4", TEXTS[:1])
    assert len(maps) == FRAMES
    film = ca.film_maps(clip, tmp_path / "walk.mp4", TEXTS[:1], tmp_path / "maps.npy", rate=2.0)
    assert len(film) == len(some)
    assert film.rate == 2
    (tmp_path / "half.mp4").write_bytes((tmp_path / "walk.mp4").read_bytes()[:900])
    with pytest.raises(BadInput, match="no collection of frames"):
        Video.of(tmp_path / "half.mp4")


def test_animations_are_films_where_they_are_asked_for_as_such(
    frames: list[np.ndarray], clip: ca.Clip, tmp_path: Path
) -> None:
    images = [Image.fromarray(frame) for frame in frames[:5]]
    for name in ("a.webp", "a.png"):
        images[0].save(tmp_path / name, save_all=True, append_images=images[1:], duration=200, lossless=True)
        film = film_of(tmp_path / name)
        assert film.rate == pytest.approx(5)
        for one, frame in zip(film, frames, strict=False):
            np.testing.assert_array_equal(np.asarray(one.read()), frame)
        assert len(list(film_of(tmp_path / name, rate=2.5))) == 3
        assert len(ca.heatmap(clip, tmp_path / name, TEXTS)) == 1


def test_a_gif_takes_an_even_choice_of_many_frames(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("clip_anatomy.report.film_files.MOST", 7)
    paths = []
    for number in range(20):
        paths.append(tmp_path / f"{number}.png")
        Image.new("RGB", (900, 40), (12 * number, 0, 0)).save(paths[-1])
    assert write_gif(paths, tmp_path / "few.gif", 10.0) == 7
    with Image.open(tmp_path / "few.gif") as gif:
        assert gif.n_frames == 7
        assert gif.size == (480, 21)
        assert gif.info["duration"] == 300
        reds = [np.asarray(frame.convert("RGB"))[5, 5, 0] for frame in ImageSequence.Iterator(gif)]
    np.testing.assert_allclose(reds, [36 * k for k in range(7)], atol=4)


def test_what_is_no_film_says_what_to_type(clip: ca.Clip, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "maps.npy"
    wrong: list[tuple[Callable[[], Any], type[Exception], str]] = [
        (lambda: ca.film_maps(clip, folder / "frame-1.png", TEXTS, file), BadSpec, "is one picture, not a film"),
        (lambda: ca.film_maps(clip, iter([]), TEXTS, file), BadSpec, r"Type: list\(frames\)"),
        (lambda: ca.film_maps(clip, folder, TEXTS, file, rate=0.0), BadSpec, "Type a number such as 10"),
        (lambda: ca.film_maps(clip, folder, TEXTS, tmp_path / "maps.png"), BadSpec, "Type: file='maps.npy'"),
        (lambda: ca.film_maps(clip, tmp_path / "gone.mp4", TEXTS, file), BadInput, "no collection of frames"),
    ]
    for call, kind, says in wrong:
        with pytest.raises(kind, match=says):
            call()
    sizes = [Image.new("RGB", (64, 64)), Image.new("RGB", (64, 80))]
    with pytest.raises(BadImage, match="64 × 80 pixels, and the frames before it 64 × 64"):
        ca.film_maps(clip, sizes, TEXTS, file)
    assert not file.exists()


def test_a_frame_that_cannot_be_read_is_left_out(clip: ca.Clip, folder: Path, tmp_path: Path) -> None:
    paths: list[Path] = [folder / f"frame-{n}.png" for n in range(4)]
    (tmp_path / "bad.png").write_bytes(b"no picture")
    paths.insert(2, tmp_path / "bad.png")
    with pytest.raises(BadImage):
        ca.film_maps(clip, paths, TEXTS, tmp_path / "maps.npy")
    found = ca.film_maps(clip, paths, TEXTS, tmp_path / "maps.npy", skip_bad=True)
    assert len(found) == 4
    assert "bad.png" in found.run.failed[0][0]
    assert [Path(maps.names[0]).name for maps in found] == [f"frame-{n}.png" for n in range(4)]


def test_from_the_command_line(folder: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    words = ["--film", "5", "--out", str(out), "-t", "a red circle"]
    assert main(["heatmap", str(folder), *words, "--method", "naclip", "--size", "whole", "--colours", "heat"]) == 0
    told = capsys.readouterr()
    assert f"naclip: maps of {FRAMES} frames, 5 a second" in told.out
    assert np.load(out / "maps.npy").shape[:2] == (FRAMES, 1)
    assert main(["segment", str(folder), *words, "--background", "grass", "--no-pictures"]) == 0
    known = json.loads((out / "film.json").read_text())
    assert known["masks"]["texts"] == 1
    assert not (out / "painted").exists()
    assert (out / "masks" / "000000.png").exists()
    for wrong, says in (
        ([*words, "--layers"], "--layers is not for a film"),
        ([*words, "--tiles", "0"], "Type one of them"),
        ([*words, "--method", "naclip,raw"], "drawn by one method"),
        (["--film", "5", "-t", "a", "--json"], "Type also: --out FOLDER"),
        (["--film", "5", "--out", str(out)], "Type also: --text"),
    ):
        assert main(["heatmap", str(folder), *wrong]) == 2
        assert says in capsys.readouterr().err
