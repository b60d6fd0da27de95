"""The store: what it holds equals the exact split, all ways of reading agree, what is not there is named."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from pictures import encoded, noise, written
from store_of_photos import (
    COUNT,
    clip,
    files_of,
    made,
    mine,
    other,
    photos,
    whole_of,
)
from tiny import open_clip_model

import clip_anatomy as ca
from clip_anatomy.data.open_dataset import open_dataset
from clip_anatomy.errors import BadInput, BadSpec, MissingExtra, OutputError, StoreError
from clip_anatomy.store import writer as writer_module
from clip_anatomy.store.fixed_point import decode, encode
from clip_anatomy.store.index import index
from clip_anatomy.store.manifest import Manifest
from clip_anatomy.store.remove import remove
from clip_anatomy.store.store import Store
from clip_anatomy.store.verify import verify

__all__ = ["clip", "made", "mine", "other", "photos"]  # fixtures


@pytest.mark.parametrize("convention", ["centered", "official"])
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
    for at, layer in enumerate(store.manifest.layers):
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


def test_cosines_of_a_store_are_right_to_a_millionth(tmp_path):
    clip = ca.load("demo")
    index(clip, "world:80:test", tmp_path / "s")
    store = Store.open(tmp_path / "s", clip)
    exact = clip.encode_image([picture.data for picture in open_dataset("world:80:test")]).double()
    assert (store.embeddings().double() - exact).norm(dim=1).max() < 2e-6 * exact.norm(dim=1).max()
    exact, stored = torch.nn.functional.normalize(exact, dim=-1), store.embeddings(unit=True).double()
    draw = torch.Generator().manual_seed(0)
    texts = torch.nn.functional.normalize(torch.randn(100, 128, dtype=torch.double, generator=draw), dim=-1)
    assert (stored @ stored.T - exact @ exact.T).abs().max() < 1e-6  # 9e-5 in float16
    assert (stored @ texts.T - exact @ texts.T).abs().max() < 1e-6
    assert torch.equal(store.embeddings([70, 3, 3]), store.embeddings()[[70, 3, 3]])


@pytest.mark.parametrize("embed", [1, 7, 24, 33, 768])
def test_fixed_point_is_off_by_half_a_step_of_its_group(embed):
    rng = np.random.default_rng(embed)
    unit = rng.standard_normal((40, embed)) * np.exp(rng.normal(0, 2, embed))
    unit = (unit / np.linalg.norm(unit, axis=1, keepdims=True)).astype(np.float32)
    unit[0], unit[1] = 0, np.eye(embed)[-1]
    found = decode(encode(unit))
    largest = np.stack([np.abs(unit[:, at - at % 32 : at - at % 32 + 32]).max(1) for at in range(embed)], 1)
    assert found.dtype == np.float32
    assert (np.abs(found - unit) <= largest * 2 ** (1 / 8) / 524287 / 2 + 2e-7 * np.abs(unit)).all()
    assert sum(array.nbytes for array in encode(unit).values()) == 40 * (2 * embed + -(-embed // 2) + -(-embed // 32))


def test_a_store_of_before_opens_and_goes_on_in_float16(clip, photos, tmp_path, monkeypatch):
    of = Manifest.of
    monkeypatch.setattr(Manifest, "of", lambda *given: replace(of(*given), format="clip-anatomy store 2"))
    index(clip, photos, tmp_path / "old")
    monkeypatch.undo()
    (tmp_path / "more").mkdir()
    written(tmp_path / "more" / "later.png", encoded(noise(40, 40), "PNG"))
    assert index(clip, tmp_path / "more", tmp_path / "old").done == 1  # and merged into one block
    index(clip, photos, tmp_path / "new")
    old, new = Store.open(tmp_path / "old", clip), Store.open(tmp_path / "new", clip)
    assert (len(old.blocks), old.manifest.format, new.manifest.format) == (
        1,
        "clip-anatomy store 2",
        "clip-anatomy store 3",
    )
    off = (old.embeddings(unit=True)[:-1] - new.embeddings(unit=True)).abs().max()
    assert 1e-7 < off < 3e-4
    assert verify(tmp_path / "old").problems == ()
    hits = [ca.search(store, old.rows()[7].id, mode="whole", k=1).hits[0] for store in (old, new)]
    assert hits[0].score == pytest.approx(hits[1].score, abs=3e-4)
    unit = new.embeddings([7, hits[1].row.index], unit=True)
    assert hits[1].score == pytest.approx(float(unit[0] @ unit[1]), abs=1e-6)


def test_the_embedding_is_rebuilt_from_float16_heads_and_the_rest(clip, photos, made):
    store = Store.open(made)
    parts = ca.decompose(clip, files_of(store, photos))
    length = parts.embedding.norm(dim=-1)[:, None]
    coordinates = whole_of(store)
    heads = store.basis.restore(coordinates).sum((1, 2)).float() * length
    mlps = sum(store.mlps(layer).float() for layer in range(3)) * length
    rebuilt = heads + mlps + parts.input_embedding + parts.bias
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
    upper, low, scale = (group[name][:].astype(np.int64) for name in ("embedding", "embedding_low", "embedding_scale"))
    for image, at in ((0, 0), (5, 7), (COUNT, 11)):  # as docs/store.md says
        half = -(-upper.shape[1] // 2)
        nibble = low[image, at % half] >> 4 if at >= half else low[image, at] & 15
        number = (16 * upper[image, at] + nibble) / 524287 * 2 ** (-scale[image, at // 32] / 8)
        assert abs(number * group["norm"][image] - store.embeddings()[image, at]) < 1e-6


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
    with pytest.raises(StoreError, match="Type model="):
        index(other, "world:3", made)
    assert Manifest.load(made).model == "CLIP"


def test_other_settings_are_refused_by_name_and_none_means_as_it_is(clip, photos, mine):
    for settings, says in [
        ({"layers": "last:1"}, "layers"),
        ({"keep": "heads"}, "keep"),
        ({"convention": "official"}, "conv"),
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


def test_size_on_disk_is_what_is_announced(made):
    store = Store.open(made)
    held = sum(p.stat().st_size for p in store.blocks[0].folder.rglob("*") if p.is_file() and p.name != "zarr.json")
    indices = 3 * (2 * 16 + 4)
    assert held == store.manifest.row_bytes * 61 + indices
