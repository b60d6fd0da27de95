"""The command line of search, its page in a browser, and photographs."""

import json
import shutil

import pytest
import torch
from PIL import Image

import clip_anatomy as ca
from clip_anatomy.cli.main import main
from clip_anatomy.report.highlight import highlight, limits_of
from clip_anatomy.store.index import index
from clip_anatomy.store.store import Store


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A person's folder: pictures of the demo world as files, so that they can be deleted."""
    from clip_anatomy.data.world import World

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("pictures")
    scenes = World(split="test", length=60).batch(torch.arange(60).numpy())
    words = scenes.labels()
    rows = []
    for at in range(60):
        Image.fromarray(scenes.images[at]).save(folder / f"{at:02d}.png")
        rows.append(
            {
                "path": f"{at:02d}.png",
                "label": words["shape"][at],
                "colour": words["colour"][at],
                "caption": f"a {words['colour'][at]} {words['shape'][at]}",
            }
        )
    (folder / "metadata.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture(scope="module")
def store(pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores") / "store"
    index(ca.load("demo"), pictures, folder)
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_folder_is_searchable_in_two_commands(store, pictures, here, capsys):
    assert main(["search", str(store), str(pictures / "05.png"), "--heads", "colour", "-k", "6"]) == 0
    told = capsys.readouterr()
    assert "colour" in told.out
    assert "page: clip-anatomy-search/index.html" in told.err
    assert "knows only a small drawn world" in told.err, "these are files: they may be photographs"
    folder = here / "clip-anatomy-search"
    assert sorted(path.name for path in folder.iterdir()) == [
        "contact-sheet.png",
        "index.html",
        "run.json",
        "search.json",
    ]
    page = (folder / "index.html").read_text()
    aside, results = page.split("<main>")
    assert "Same colour as 05.png" in page
    assert aside.count('class="map"') == 1, "what was looked for in the picture that was asked for"
    assert results.count('class="map"') == 6, "each result shows which patches made it match"
    assert results.count('<ul class="why">') == 6, "and which heads"
    assert (pictures / "05.png").as_uri() in aside, "and leads to its file"
    assert 'class="alike"' in results, "and says in words what it shares"
    assert "http" not in page.replace("http://www.w3.org", ""), "the page holds everything"
    with Image.open(folder / "contact-sheet.png") as sheet:
        assert sheet.width > 1000
    assert main(["search", str(store), "id:05.png", "--heads", "background", "-k", "3"]) == 0, (
        "a second search replaces the first"
    )


def test_json_is_what_the_python_api_finds(store, capsys):
    assert main(["search", str(store), "05.png", "--heads", "1.0,2.0", "-k", "4", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    from clip_anatomy.retrieval.search import search

    assert [hit["id"] for hit in told["hits"]] == search(store, "05.png", "1.0,2.0", k=4).ids
    assert told["hits"][0]["rank"] == 1
    assert told["schema"] == "clip-anatomy/search/1"


def test_modes_filters_and_texts(store, here, capsys):
    for words in (
        ["05.png", "--mode", "whole"],
        ["05.png", "--mode", "without", "--heads", "role=colour"],
        ["05.png", "06.png", "--negative", "07.png", "--measure", "dot"],
        ["a red bird", "--focus", "colour", "--heads", "all"],
        ["05.png", "text:a bird", "--focus", "a bird|a fish", "--mode", "whole"],
    ):
        assert main(["search", str(store), *words, "-k", "3", "--json"]) == 0
        assert len(json.loads(capsys.readouterr().out)["hits"]) == 3
    filtered = ["search", str(store), "05.png", "--mode", "whole", "--json", "--where"]
    assert main([*filtered, "label = 'bird'"]) == 0
    assert {hit["label"] for hit in json.loads(capsys.readouterr().out)["hits"]} <= {"bird"}
    assert main([*filtered, "label = 'nothing'"]) == 0
    told = capsys.readouterr()
    assert "matches none of 60 images" in told.err


def test_captions(store, capsys):
    assert main(["search", str(store), "05.png", "--captions", "--heads", "auto", "-k", "5", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["hits"]) == 5
    assert told["hits"][0]["ids"]
    assert main(["search", str(store), "05.png", "--captions", "-k", "5"]) == 0
    assert "heads of the text tower" in capsys.readouterr().out


def test_a_picture_is_lit_where_it_matched():
    patches = torch.tensor([[1.0, 0.25], [0.0, -1.0]])
    shade = highlight(patches, 1.0)
    assert shade[0, 0, 3] == 0, "the best patch is as it is"
    assert 0 < shade[0, 1, 3] < shade[1, 0, 3], "a part in the match lies between"
    assert shade[1, 1, 2] > 150 > shade[1, 0, 2], "against it is blue"
    assert limits_of(patches, 0.5 * patches, 0.01 * patches, None) == [1.0, 0.5, 0.35, 0.35]


def test_an_index_is_built_and_asked(store, capsys):
    pytest.importorskip("faiss", exc_type=ImportError)
    for _ in range(2):
        assert main(["search", str(store), "05.png", "--heads", "1.0,2.0", "--approximate", "--json"]) == 0
        told = capsys.readouterr()
        assert "recall@100 against the exact scan" in told.err
        assert not json.loads(told.out)["exact"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing was asked"),
        (["no.jpg"], "there is no picture"),
        (["05.png", "--heads", "99.0"], "layer 99 is not in"),
        (["05.png", "--heads", "role=smell"], "no head has the role"),
        (["05.png", "--where", "DROP TABLE images"], "not SQL"),
        (["05.png", "-k", "0"], "k 0: 1 or more"),
        (["05.png", "--approximate"], "serves fixed heads"),
        (["05.png", "--mode", "half"], "mode 'half' is not known"),
        (["05.png", "--captions", "--heads", "role=colour"], "roles are known for image heads only"),
        (["05.png", "--captions", "--mode", "whole"], "--mode would do nothing"),
        (["05.png", "--captions", "--out", "x"], "--out would do nothing"),
        (["05.png", "--captions", "--where", "1"], "--where would do nothing"),
        (["05.png", "--mode", "whole", "--device", "gpu"], "device 'gpu' is not known"),
    ],
)
def test_bad_input_ends_with_two_and_says_what_to_type(store, here, capsys, words, message):
    assert main(["search", str(store), *words]) == 2
    assert message in capsys.readouterr().err
    assert not [*here.iterdir()], "nothing half-written"


def test_foreign_pages_are_not_overwritten(store, tmp_path, capsys):
    (tmp_path / "index.html").write_text("mine")
    assert main(["search", str(store), "05.png", "--mode", "whole", "--out", str(tmp_path)]) == 2
    assert "files of something else" in capsys.readouterr().err
    assert (tmp_path / "index.html").read_text() == "mine"


def test_deleted_files_are_named_and_the_rest_is_shown(store, pictures, tmp_path, capsys):
    gone = tmp_path / "gone"
    shutil.copytree(pictures, gone)
    index(ca.load("demo"), gone, tmp_path / "store")
    for file in gone.glob("[1-5]*.png"):
        file.unlink()
    assert (
        main(
            ["search", str(tmp_path / "store"), "05.png", "--mode", "whole", "-k", "30", "--out", str(tmp_path / "out")]
        )
        == 0
    )
    assert "picture missing" in capsys.readouterr().err
    page = (tmp_path / "out" / "index.html").read_text()
    assert "no picture: " in page
    assert page.split("<main>")[1].count('class="map"') + page.count("no picture: ") == 30


def test_pages_escape_what_rows_say(store, pictures, tmp_path):
    rows = [{"path": "05.png", "label": "<script>alert(1)</script>"}]
    folder = tmp_path / "odd"
    folder.mkdir()
    for at in range(3, 8):
        shutil.copy(pictures / f"{at:02d}.png", folder)
    (folder / "metadata.json").write_text(json.dumps(rows))
    index(ca.load("demo"), folder, tmp_path / "store")
    assert main(["search", str(tmp_path / "store"), "06.png", "--mode", "whole", "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "index.html").read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page


def test_photographs_are_indexed_searched_and_drawn(shared, tmp_path):
    folder = tmp_path / "coco"
    folder.mkdir()
    for file in sorted((shared / "data" / "coco" / "images").glob("*.jpg"))[:12]:
        (folder / file.name).symlink_to(file)
    index(ca.load("demo"), folder, tmp_path / "store")
    first = Store.open(tmp_path / "store").column("id")[0]
    assert (
        main(
            [
                "search",
                str(tmp_path / "store"),
                str(folder / first),
                "--heads",
                "all",
                "--out",
                str(tmp_path / "out"),
                "-k",
                "12",
            ]
        )
        == 0
    )
    told = json.loads((tmp_path / "out" / "search.json").read_text())
    assert len(told["hits"]) == 11
    assert first not in {hit["id"] for hit in told["hits"]}


def test_the_page_in_a_browser(store, tmp_path, browser):
    assert (
        main(["search", str(store), "05.png", "--heads", "role=colour", "-k", "4", "--out", str(tmp_path / "out")]) == 0
    )
    page = browser.new_page()
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((tmp_path / "out" / "index.html").as_uri())
    assert page.locator("ol.grid > li").count() == 4
    over = page.locator("img.map").first
    assert over.evaluate("e => getComputedStyle(e).opacity") == "1"
    page.locator("#maps").uncheck()
    page.wait_for_function("getComputedStyle(document.querySelector('img.map')).opacity == '0'")
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()
    assert errors == []
