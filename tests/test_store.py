"""The store: what it holds equals the exact split, reads in every way agree, moments hold, removal and damage are seen."""

import json
import re
import shutil
import sqlite3
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from pictures import encoded, noise, written
from PIL import Image
from tiny import open_clip_model

import clip_anatomy as ca
from clip_anatomy.anatomy.moments import Moments
from clip_anatomy.errors import BadInput, BadSpec, MissingExtra, OutputError, StoreError
from clip_anatomy.library import writer as writer_module
from clip_anatomy.library.index import index, model_of
from clip_anatomy.library.remove import remove
from clip_anatomy.library.sources.opening import open_source
from clip_anatomy.library.store import Store
from clip_anatomy.library.verify import verify

COUNT = 60


@pytest.fixture(scope="module")
def clip():
    torch.set_num_threads(1)
    return ca.load(open_clip_model(layers=3, heads=2, d=8, embed=20), parity=False)


@pytest.fixture(scope="module")
def other():
    return ca.load(open_clip_model(layers=3, heads=2, d=8, embed=20, seed=1), parity=False)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Sixty files of three classes, two of them twins."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for at in range(COUNT):
        levels = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        image = Image.fromarray(levels).resize((33 + at % 7, 36))
        path = folder / f"class {at % 3}" / f"{at:03d}.png"
        path.parent.mkdir(exist_ok=True)
        image.save(path)
    shutil.copy(folder / "class 0" / "000.png", folder / "class 1" / "twin.png")
    return folder


@pytest.fixture(scope="module")
def made(clip, photos, tmp_path_factory):
    """One store of the photos, read-only for the tests."""
    path = tmp_path_factory.mktemp("stores") / "store"
    index(clip, photos, path, keep="heads,mlps", batch=16, commit_seconds=0.0)
    return path


@pytest.fixture
def mine(made, tmp_path):
    """A copy to damage."""
    return shutil.copytree(made, tmp_path / "store")


def walked(folder):
    return list(open_source(folder))


def whole_of(store):
    """All heads [image, layer, head, d], read one by one."""
    layers = [[store.heads(layer, head) for head in range(2)] for layer in store.about.layers]
    return torch.stack([torch.stack(heads, 1) for heads in layers], 1)


def files_of(store, photos):
    return [photos / row.path for row in store.rows()]


@pytest.mark.parametrize("convention", ["own", "even"])
@pytest.mark.parametrize("layers", ["all", "last:2", "0,2"])
def test_a_store_holds_the_exact_split(clip, photos, tmp_path, convention, layers):
    index(
        clip,
        photos,
        tmp_path / "s",
        layers=layers,
        keep="heads,mlps",
        convention=convention,
        batch=20,
        commit_seconds=0.0,
    )
    store = Store.open(tmp_path / "s", clip)
    parts = ca.decompose(clip, files_of(store, photos), convention)
    length = parts.embedding.norm(dim=-1)
    for at, layer in enumerate(store.about.layers):
        for head in range(2):
            u = store.heads(layer, head).double()
            x = torch.einsum("id,de->ie", u, store.basis.rows[at, head])
            exact = parts.heads[:, layer, head] / length[:, None]
            assert (x - exact).norm() / exact.norm() < 1e-3  # float16
            # Whitened: dot products of coordinates are those of the contributions.
            assert torch.allclose(u @ u.T, exact.double() @ exact.double().T, atol=2e-3)
        exact = parts.mlps[:, layer] / length[:, None]
        assert (store.mlps(layer).float() - exact).norm() / exact.norm() < 1e-3
    assert torch.allclose(store.norms(), length, rtol=1e-5)
    assert (store.embeddings() - parts.embedding).norm() / parts.embedding.norm() < 1e-3
    unit = store.embeddings(unit=True)
    assert (unit * torch.nn.functional.normalize(parts.embedding, dim=-1)).sum(-1).min() > 0.999999


def test_the_embedding_is_rebuilt_from_float16_heads_and_the_rest(clip, photos, made):
    store = Store.open(made)
    parts = ca.decompose(clip, files_of(store, photos))
    length = parts.embedding.norm(dim=-1)[:, None]
    coordinates = whole_of(store)
    heads = store.basis.restore(coordinates).sum((1, 2)).float() * length
    mlps = sum(store.mlps(layer).float() for layer in range(3)) * length
    rebuilt = heads + mlps + parts.start + parts.bias
    assert torch.cosine_similarity(rebuilt, parts.embedding).min() > 0.9999


def test_zarr_reads_it_as_it_is(made):
    import zarr

    store = Store.open(made)
    (block,) = store.blocks
    group = zarr.open_group(block.folder, mode="r")
    heads = group["heads"]
    assert heads.metadata.dimension_names == ("layer", "head", "image", "d")
    assert heads.shards == (1, 2, COUNT + 1, 8)
    for layer in range(3):
        for head in range(2):
            assert np.array_equal(heads[layer, head], store.heads(layer, head))
        assert np.array_equal(group["mlps"][layer], store.mlps(layer))
    assert np.array_equal(group["norm"][:], store.norms())
    assert group["embedding"].metadata.dimension_names == ("image", "embed")


def test_a_head_that_writes_nothing_leaves_a_file_all_the_same(photos, tmp_path):
    """By default zarr writes no chunk of zeros; then a missing file would prove nothing."""
    model = open_clip_model(layers=2, heads=2, d=8)
    with torch.no_grad():
        for p in (model.visual.transformer.resblocks[0].attn.out_proj.weight,):
            p.zero_()
    silent = ca.load(model, parity=False)
    index(silent, photos, tmp_path / "s", batch=32)
    store = Store.open(tmp_path / "s")
    assert not store.heads(0, 1).any()
    assert store.heads(1, 1).any()
    shard = store.blocks[0].folder / "heads" / "c" / "0" / "0" / "0" / "0"
    assert shard.stat().st_size > 2 * 61 * 8 * 2
    shard.unlink()
    assert any("missing" in problem for problem in verify(tmp_path / "s").problems)


def test_all_ways_of_reading_agree(clip, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(writer_module, "FULL", 20)  # several blocks
    index(clip, photos, tmp_path / "s", batch=8, commit_seconds=0.0)
    store = Store.open(tmp_path / "s")
    assert len(store.blocks) > 1
    assert len(store) == len(store.rows()) == COUNT + 1
    whole = whole_of(store)
    for first, piece in store.batches(7):
        assert torch.equal(piece, whole[first : first + len(piece)])
    assert torch.equal(torch.cat([piece for _, piece in store.batches(7)]), whole)
    assert torch.equal(torch.cat([p for _, p in store.batches(layers=[2])]), whole[:, 2:])
    pairs = [(2, 1), (0, 0)]
    scanned = torch.cat([piece for _, piece in store.scan(pairs, 9)], 1)
    assert torch.equal(scanned, torch.stack([whole[:, layer, head] for layer, head in pairs]))
    some = [60, 3, 3, 27]
    assert torch.equal(store.heads(1, 1, some), whole[some, 1, 1])
    assert torch.equal(store.heads(1, 1, torch.tensor(some)), whole[some, 1, 1])
    assert torch.equal(store.heads(1, 1, slice(5, 9)), whole[5:9, 1, 1])
    assert torch.equal(store.embeddings(some), store.embeddings()[some])
    assert [row.index for row in store.rows()] == list(range(61))
    assert store.column("id") == [row.id for row in store.rows()]


@pytest.mark.parametrize("rows", [[61], [-1], np.array([0.5])])
def test_rows_beyond_the_store_are_refused(made, rows):
    with pytest.raises(BadInput, match="from 0 to 60"):
        Store.open(made).heads(0, 0, rows)


def test_rows_are_filtered_by_sql_that_can_do_nothing_else(made):
    store = Store.open(made)
    assert [row.label for row in store.rows("label = ?", ["class 1"])] == ["class 1"] * 21
    some = store.rows('"row" = 36 AND size > :least', {"least": 10})
    assert [row.index for row in some] == list(range(61))
    twins = store.rows("digest IN (SELECT digest FROM images GROUP BY digest HAVING count(*) > 1)")
    assert [row.id for row in twins] == ["class 0/000.png", "class 1/twin.png"]
    hostile = [
        "1; DROP TABLE images",
        "1) UNION SELECT * FROM facts --",
        "id IN (SELECT value FROM facts)",
        "load_extension('x')",
        "1 = 1) ; ATTACH 'x' AS y; --",
        "nonsense = 3",
        "group = 'x'",
        "label = ? AND size > ?",
    ]
    for where in hostile:
        with pytest.raises(BadInput, match="filter"):
            store.rows(where, ["x"])
    assert [row.index for row in store.rows("0) OR (1")] == list(range(61))  # escapes the brackets, not the view
    assert len(store.rows()) == 61
    assert store.rows("label = ?", ["' OR 1 = 1 --"]) == []
    with pytest.raises(BadInput, match="status"):
        store.rows(status="other")


def test_another_model_is_refused_by_name(made, other, clip):
    with pytest.raises(StoreError, match=f"{clip.digest[:8]}.*this is CLIP.*{other.digest[:8]}"):
        Store.open(made, other)
    with pytest.raises(StoreError, match="Type --model"):
        index(other, "world:3", made)
    assert model_of(made) == "CLIP"
    assert model_of(made / "nothing") is None


def test_other_settings_are_refused_by_name_and_none_means_as_it_is(clip, photos, mine):
    for settings, says in [
        ({"layers": "last:1"}, "layers"),
        ({"keep": "heads"}, "keep"),
        ({"convention": "even"}, "conv"),
    ]:
        with pytest.raises(StoreError, match=f"made with {says}"):
            index(clip, photos, mine, **settings)
    with pytest.raises(StoreError, match="preprocess"):
        index(replace(clip, preprocess=clip.preprocess.at(48)), photos, mine)
    assert index(clip, photos, mine).done == 0


@pytest.mark.parametrize(
    ("call", "kind", "says"),
    [
        (lambda s: s.heads(9, 0), BadSpec, "layer 9"),
        (lambda s: s.heads(0, 2), BadSpec, "0 to 1"),
        (lambda s: next(s.scan([(0, 5)])), BadSpec, "heads 0 to 1"),
        (lambda s: s.moments(groups="path"), BadInput, "groups="),
    ],
)
def test_what_is_not_there_is_named(made, call, kind, says):
    with pytest.raises(kind, match=says):
        call(Store.open(made))


def test_a_store_says_what_it_does_not_hold(clip, photos, tmp_path):
    index(clip, [photos / "class 0" / "000.png"], tmp_path / "s", layers=[2])
    store = Store.open(tmp_path / "s")
    with pytest.raises(StoreError, match="holds no MLPs"):
        store.mlps(2)
    with pytest.raises(BadSpec, match=r"holds \[2\]"):
        store.heads(0, 0)
    for keep, says in [("mlps", "leaves out the heads"), ("heads,tokens", "'tokens' is not known")]:
        with pytest.raises(BadSpec, match=says):
            index(clip, photos, tmp_path / "t", keep=keep)
    for layers in ("last:9", "x", "3", "", [7]):
        with pytest.raises(BadSpec, match="the model has 0 to 2"):
            index(clip, photos, tmp_path / "t", layers=layers)
    assert not (tmp_path / "t").exists()


def test_places_that_are_no_store(clip, photos, tmp_path):
    with pytest.raises(StoreError, match="is no store. Make one"):
        Store.open(tmp_path)
    with pytest.raises(OutputError, match="not empty"):
        index(clip, photos, photos)
    with pytest.raises(OutputError, match="is a file"):
        index(clip, photos, written(tmp_path / "file", b""))
    with pytest.raises(StoreError, match="is no store"):
        remove(tmp_path / "nothing", ["a"])
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "store.json").write_text(json.dumps({"format": "clip-anatomy store 99"}))
    with pytest.raises(StoreError, match="store 99"):
        Store.open(tmp_path / "old")
    (tmp_path / "old" / "store.json").write_text("{")
    with pytest.raises(StoreError, match="damaged"):
        Store.open(tmp_path / "old")


def test_a_missing_zarr_names_its_install_line(clip, photos, made, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(MissingExtra, match=r"pip install 'clip-anatomy\[library\]'"):
        index(clip, photos, tmp_path / "s")
    assert Store.open(made).heads(0, 0).any()  # reading needs none


def from_scratch(store, keep=None):
    """Moments by plain numpy in float64."""
    x = whole_of(store).permute(1, 2, 0, 3).double().numpy()
    x = x if keep is None else x[:, :, keep]
    mean = x.mean(2)
    return x.shape[2], mean, np.einsum("lhid,lhie->lhde", x, x) / x.shape[2]


def check_moments(moments: Moments, expected):
    count, mean, second = expected
    assert moments.count == count
    assert np.abs(moments.mean.numpy() - mean).max() < 1e-12
    assert np.abs(moments.uncentred.numpy() - second).max() < 1e-12


def test_moments_are_kept_and_equal_those_from_scratch(made):
    store = Store.open(made)
    kept = store.moments()
    assert kept.chunks == 32
    assert len(list((made / "moments").glob("all-32.*"))) == 1
    check_moments(kept, from_scratch(store))
    check_moments(store.moments(chunks=5), from_scratch(store))
    assert kept.basis is not None
    assert kept.model == store.about.digest
    fine, coarse = store.moments(chunks=8).counts[0], kept.counts[0]
    assert torch.equal(fine, coarse.view(4, 8).sum(0))  # the same images fall together
    labels = np.array(store.column("label"))
    grouped = store.moments(groups="label", chunks=1)
    assert store.values("label") == ("class 0", "class 1", "class 2")
    for code, name in enumerate(store.values("label")):
        check_moments(grouped.group(code), from_scratch(store, labels == name))
    assert torch.equal(store.codes("label"), torch.tensor([int(name[-1]) for name in labels]))


def test_moments_per_group_are_kept_where_there_are_groups(clip, tmp_path):
    index(clip, "world:90:test", tmp_path / "s", batch=32)
    store = Store.open(tmp_path / "s")
    assert len(list((tmp_path / "s" / "moments").glob("group-1.*"))) == 1
    groups = np.array(store.column("group"))
    found = store.moments(groups="group")
    for code, name in enumerate(store.values("group")):
        check_moments(found.group(code), from_scratch(store, groups == name))
    # New groups appear: the kept ones are renumbered, not taken again from nothing.
    index(clip, "world:500:test", tmp_path / "s", batch=32)
    store = Store.open(tmp_path / "s")
    groups = np.array(store.column("group"))
    found = store.moments(groups="group")
    for code, name in enumerate(store.values("group")):
        check_moments(found.group(code), from_scratch(store, groups == name))


def test_moments_do_not_need_the_kept_file(made, mine):
    for path in (mine / "moments").iterdir():
        path.write_bytes(path.read_bytes()[:-100])
    check_moments(Store.open(mine).moments(), from_scratch(Store.open(made)))


def test_appending_adds_only_what_is_new(clip, photos, mine, tmp_path):
    before = Store.open(mine)
    known = before.heads(1, 0)
    more = shutil.copytree(photos, tmp_path / "more")
    written(more / "class 2" / "zz.png", encoded(noise(40, 40), "PNG"))
    written(more / "class 0" / "000b.png", encoded(noise(50, 40), "PNG"))
    done = index(clip, more, mine)
    assert (done.done, done.known, done.images) == (2, 61, 63)
    store = Store.open(mine)
    assert torch.equal(store.heads(1, 0)[:61], known)
    assert [row.id for row in store.rows()][61:] == ["class 0/000b.png", "class 2/zz.png"]
    check_moments(store.moments(), from_scratch(store))
    assert verify(mine).holds
    with pytest.raises(StoreError, match="changed since it was opened"):
        before.rows()
    with pytest.raises(StoreError, match="Open it again"):
        before.heads(0, 0)


@pytest.mark.parametrize("wipe", [True, False])
def test_removing_takes_images_out_of_everything(clip, photos, mine, wipe):
    before = Store.open(mine)
    out = [row.index for row in before.rows("label = 'class 1'")][:5]
    left = [at for at in range(61) if at not in out]
    ids = [before.rows()[at].id for at in out]
    assert remove(mine, ids, wipe=wipe) == 5
    store = Store.open(mine)
    assert len(store) == len(store.rows()) == 56
    assert [row.index for row in store.rows()] == list(range(56))
    with sqlite3.connect(mine / "rows.sqlite") as rows:
        assert rows.execute("SELECT count(*) FROM holes").fetchone()[0] == (0 if wipe else 5)
    rows.close()
    assert [row.id for row in store.rows()] == [row.id for at, row in enumerate(walked(photos)) if at in left]
    check_moments(store.moments(), from_scratch(store))
    assert not {row.id for row in store.rows()} & {*ids}
    assert verify(mine).holds
    done = index(clip, photos, mine)
    assert (done.done, done.known) == (0, 61)  # removed stays removed
    assert len(Store.open(mine).rows(status="removed")) == 5


def test_reading_with_holes_is_aligned(mine, made):
    full = Store.open(made)
    remove(mine, where="label = ?", parameters=["class 2"], wipe=False)
    store = Store.open(mine)
    left = [row.index for row in full.rows("label <> 'class 2'")]
    assert torch.equal(store.heads(2, 1), full.heads(2, 1)[left])
    assert torch.equal(store.mlps(0), full.mlps(0)[left])
    assert torch.equal(store.embeddings(), full.embeddings()[left])
    assert torch.equal(torch.cat([p for _, p in store.batches(9)])[:, 1, 1], full.heads(1, 1)[left])
    assert store.places("label = 'class 1'").tolist() == [row.index for row in store.rows("label = 'class 1'")]
    some = store.rows("label = 'class 1'")
    names = [row.id for row in full.rows("label = 'class 1'")]
    assert [row.id for row in some] == names
    assert torch.equal(
        store.heads(0, 1, [row.index for row in some]),
        full.heads(0, 1)[[row.index for row in full.rows("label = 'class 1'")]],
    )


def test_everything_can_be_removed(mine):
    assert remove(mine, where="1") == 61
    store = Store.open(mine)
    assert len(store) == 0
    assert store.rows() == []
    assert store.heads(0, 0).shape == (0, 8)
    assert store.moments().count == 0
    assert verify(mine).holds


def test_removing_asks_for_what_is_there(mine):
    for given in [{}, {"ids": ["a"], "where": "1"}, {"ids": ["nothing"]}, {"where": "no sql at all"}]:
        with pytest.raises(BadInput):
            remove(mine, **given)
    assert len(Store.open(mine)) == 61


def test_pruning_follows_the_source_and_lets_images_come_back(clip, photos, tmp_path):
    source = shutil.copytree(photos, tmp_path / "photos")
    index(clip, source, tmp_path / "s")
    shutil.move(source / "class 0", tmp_path / "aside")
    assert index(clip, source, tmp_path / "s").gone == 0
    done = index(clip, source, tmp_path / "s", prune=True)
    assert (done.gone, done.images) == (20, 41)
    shutil.move(tmp_path / "aside", source / "class 0")
    done = index(clip, source, tmp_path / "s")
    assert (done.done, done.images) == (20, 61)
    store = Store.open(tmp_path / "s")
    check_moments(store.moments(), from_scratch(store))
    assert sorted(row.id for row in store.rows()) == sorted(p.id for p in walked(source))
    assert verify(tmp_path / "s").holds


def test_a_flipped_byte_in_any_file_is_found(made, tmp_path):
    assert verify(made).holds
    rng = np.random.default_rng(0)
    names = [
        p.relative_to(made) for p in sorted(made.rglob("*")) if p.is_file() and p.name not in ("lock", "rows.sqlite")
    ]
    assert len(names) > 15
    for name in names:
        copy = shutil.copytree(made, tmp_path / "copy")
        data = bytearray((copy / name).read_bytes())
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        (copy / name).write_bytes(data)
        if name.name == "store.json" and broken(copy):
            pass  # the description itself can no longer be read, and that is said
        else:
            problems = verify(copy).problems
            assert any(name.name in problem for problem in problems), (name, problems)
        shutil.rmtree(copy)


def broken(store):
    try:
        Store.open(store)
    except StoreError:
        return True
    return False


def test_a_flipped_byte_in_the_rows_is_found(mine):
    data = (mine / "rows.sqlite").read_bytes()
    for text in (b"class 1/twin.png", b"class 2"):
        at = data.rindex(text)
        changed = bytearray(data)
        changed[at + 3] ^= 1
        (mine / "rows.sqlite").write_bytes(changed)
        assert not verify(mine).holds, text
    (mine / "rows.sqlite").write_bytes(b"no database at all" * 500)
    with pytest.raises(StoreError, match="cannot be read"):
        verify(mine)
    with pytest.raises(StoreError, match="cannot be read"):
        Store.open(mine)
    (mine / "rows.sqlite").unlink()
    with pytest.raises(StoreError, match="is missing"):
        verify(mine)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("UPDATE images SET place = 999 WHERE id LIKE '%twin%'", "has a row but no data"),
        ("UPDATE images SET block = NULL WHERE id LIKE '%twin%'", "has a row but no data"),
        ("UPDATE images SET place = 0 WHERE id LIKE '%twin%'", "data of another image"),
        ("DELETE FROM images WHERE id LIKE '%twin%'", "holds 61 images, rows name 60"),
        ("UPDATE images SET label = 'other' WHERE id LIKE '%twin%'", "not what was written"),
        ("UPDATE blocks SET count = 60", "rows name|no data"),
    ],
)
def test_rows_without_data_and_data_without_rows_are_found(mine, change, says):
    rows = sqlite3.connect(mine / "rows.sqlite")
    rows.execute(change)
    rows.commit()
    rows.close()
    assert any(re.search(says, problem) for problem in verify(mine).problems)


def test_a_missing_shard_is_found_and_said_when_read(mine):
    shutil.rmtree(Store.open(mine).blocks[0].folder / "heads" / "c" / "1")
    assert ["missing" in problem for problem in verify(mine).problems] == [True]
    with pytest.raises(StoreError, match="clip-anatomy verify"):
        Store.open(mine).heads(1, 0)
    assert Store.open(mine).heads(0, 0).any()


def test_a_shard_cut_short_is_not_read(mine):
    store = Store.open(mine)
    shard = store.blocks[0].folder / "heads" / "c" / "2" / "0" / "0" / "0"
    shard.write_bytes(shard.read_bytes()[:-7])
    with pytest.raises(StoreError, match="instead of"):
        store.heads(2, 0)


def test_size_on_disk_is_what_is_announced(made):
    store = Store.open(made)
    held = sum(p.stat().st_size for p in store.blocks[0].folder.rglob("*") if p.is_file() and p.name != "zarr.json")
    indices = 3 * (2 * 16 + 4)
    assert held == store.about.row_bytes * 61 + indices
