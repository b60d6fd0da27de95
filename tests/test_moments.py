"""Moments equal a two-pass computation, however the images were split, ordered, grouped, merged and kept."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from clip_anatomy.errors import BadInput, OutputError
from clip_anatomy.split.basis import HeadBasis, basis_of, coordinates_of, official_scalars
from clip_anatomy.split.moments import Moments

RANDOM = np.random.default_rng(7)


@pytest.fixture(autouse=True)
def _one_thread():
    """Matrices this small only wait for a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def two_pass(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, covariance and E[xxᵀ] of [image, layer, head, d] by numpy, one head at a time."""
    mean = x.mean(0)
    covariance = np.zeros((*x.shape[1:], x.shape[-1]))
    raw = np.zeros_like(covariance)
    for at in np.ndindex(*x.shape[1:3]):
        part = x[(slice(None), *at)]
        covariance[at] = np.cov(part, rowvar=False).reshape(x.shape[-1], -1) if len(part) > 1 else 0
        raw[at] = part.T @ part / len(part)
    return mean, covariance, raw


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(lambda s: sum(s) > 0),
    order=st.randoms(use_true_random=False),
    chunks=st.sampled_from([1, 3, 8]),
    offset=st.sampled_from([0.0, 1.0, 1e4]),
    seed=st.integers(0, 9999),
)
def test_any_split_in_any_order_equals_two_pass(sizes, order, chunks, offset, seed) -> None:
    random = np.random.default_rng(seed)
    x = random.normal(size=(sum(sizes), 2, 2, 3)) + offset
    ids = np.arange(len(x))
    cuts = np.split(np.arange(len(x)), np.cumsum(sizes)[:-1])
    order.shuffle(cuts)
    parts = [Moments.of(x[cut], ids=torch.from_numpy(ids[cut]), chunks=chunks) for cut in cuts]
    while len(parts) > 1:  # merge as a random tree, not as a list
        order.shuffle(parts)
        parts.append(parts.pop().merge(parts.pop()))
    mean, covariance, raw = two_pass(x)
    scale = max(1.0, offset)
    assert parts[0].count == len(x)
    np.testing.assert_allclose(parts[0].mean, mean, rtol=0, atol=1e-13 * scale)
    np.testing.assert_allclose(parts[0].covariance, covariance, rtol=0, atol=1e-11 * scale)
    np.testing.assert_allclose(parts[0].uncentred, raw, rtol=0, atol=1e-12 * scale**2)


def test_each_group_and_chunk_is_the_moments_of_its_own_images() -> None:
    x = RANDOM.normal(size=(200, 1, 2, 4))
    group = RANDOM.integers(3, 6, size=200)
    whole = Moments.of(x, groups=torch.from_numpy(group), ids=range(200), chunks=4)
    assert whole.groups == (3, 4, 5)
    for label in whole.groups:
        mean, covariance, _ = two_pass(x[group == label])
        np.testing.assert_allclose(whole.group(label).mean, mean, atol=1e-14)
        np.testing.assert_allclose(whole.group(label).covariance, covariance, atol=1e-13)
    assert whole.counts.sum(0).min() > 25, "ids are dealt evenly into chunks"
    # A group that only one side knows, and ids that decide the chunk whatever the batch.
    first = Moments.of(x[:90], groups=torch.from_numpy(group[:90] * 0 + 9), ids=range(90), chunks=4)
    later = Moments.of(x[90:], groups=torch.from_numpy(group[90:]), ids=range(90, 200), chunks=4)
    both = first.merge(later)
    assert both.groups == (3, 4, 5, 9)
    assert torch.equal(both.counts.sum(0), whole.counts.sum(0))
    np.testing.assert_allclose(both.covariance, whole.covariance, atol=1e-13)


@settings(max_examples=25, deadline=None)
@given(removed=st.integers(0, 40), chunks=st.sampled_from([1, 5]), seed=st.integers(0, 999))
def test_taking_images_out_undoes_merging_them(removed, chunks, seed) -> None:
    x = np.random.default_rng(seed).normal(size=(40, 2, 1, 3)) + 5
    old = Moments.of(x[:removed], ids=range(removed), chunks=chunks)
    kept = Moments.of(x[removed:], ids=range(removed, 40), chunks=chunks)
    left = old.merge(kept).without(old)
    assert torch.equal(left.counts, kept.counts)
    np.testing.assert_allclose(left.means, kept.means, atol=1e-12)
    np.testing.assert_allclose(left.scatters, kept.scatters, atol=1e-11)
    with pytest.raises(BadInput, match="only what was merged"):
        kept.without(kept.merge(Moments.of(x[:1], ids=[0], chunks=chunks)))


def test_an_empty_batch_changes_nothing() -> None:
    x = RANDOM.normal(size=(9, 1, 1, 2))
    some = Moments.of(x, groups=[4] * 9, ids=range(9), chunks=2)
    none = Moments.of(x[:0], groups=[], ids=[], chunks=2)
    assert none.count == 0
    for both in (some.merge(none), none.merge(some), some.without(none)):
        assert both.groups == (4,)
        assert torch.equal(both.means, some.means)
        assert torch.equal(both.scatters, some.scatters)
    assert not none.covariance.any()


def test_a_small_variance_on_a_large_mean_survives_a_million_images() -> None:
    x = RANDOM.normal(size=(1000, 1, 1, 2)) * 1e-4 + 1e3
    total = one = Moments.of(x)
    for _ in range(10):
        total = total.merge(total)
    assert total.count == 1024 * one.count
    np.testing.assert_allclose(total.covariance * (total.count - 1) / total.count, one.covariance * 0.999, rtol=1e-7)


def test_a_file_round_trip_keeps_everything_and_leaves_nothing_else(tmp_path: Path) -> None:
    basis = HeadBasis.of(torch.randn(2, 3, 4, 10), layers=(5, 7))
    x = torch.randn(50, 2, 3, 4)
    moments = Moments.of(x, basis=basis, groups=torch.arange(50) % 2, chunks=3, model="tiny/abc")
    path = moments.save(tmp_path / "heads.safetensors")
    back = Moments.load(path)
    assert [p.name for p in tmp_path.iterdir()] == ["heads.safetensors"]
    for name in ("counts", "means", "scatters"):
        assert torch.equal(getattr(back, name), getattr(moments, name))
    assert (back.groups, back.layers, back.model, back.convention) == ((0, 1), (5, 7), "tiny/abc", "centered")
    assert back.basis is not None
    assert torch.equal(back.basis.factor, basis.factor)
    assert back.merge(moments).count == 100
    assert back.select([7]).layers == (7,)
    assert torch.allclose(back.select([7]).mean, moments.mean[1:], atol=1e-15)


def test_bad_input_is_refused_by_name(tmp_path: Path) -> None:
    x = torch.randn(4, 1, 1, 3)
    with pytest.raises(BadInput, match=r"four axes"):
        Moments.of(x[0])
    with pytest.raises(BadInput, match="first: row 2"):
        Moments.of(x.index_fill(0, torch.tensor([2]), float("nan")))
    with pytest.raises(BadInput, match="one integer for each of the 4"):
        Moments.of(x, groups=[1, 2])
    with pytest.raises(BadInput, match="chunks=0"):
        Moments.of(x, chunks=0)
    for other in (Moments.of(x, model="b"), Moments.of(x, convention="official"), Moments.of(x, chunks=2)):
        with pytest.raises(BadInput, match="do not merge"):
            Moments.of(x).merge(other)
    with pytest.raises(BadInput, match="do not merge"):
        Moments.of(x).merge(Moments.of(torch.randn(4, 1, 2, 3)))
    with pytest.raises(BadInput, match="same basis"):
        Moments.of(x).merge(Moments.of(x, basis=HeadBasis.of(torch.randn(1, 1, 3, 5))))
    with pytest.raises(BadInput, match=r"Type some of: \[0\]"):
        Moments.of(x).select([3])
    with pytest.raises(BadInput, match="Type one of: 0"):
        Moments.of(x).group(8)
    with pytest.raises(BadInput, match="does not exist"):
        Moments.load(tmp_path / "none.safetensors")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(BadInput, match="not a readable safetensors file"):
        Moments.load(tmp_path / "text")
    save_file({"a": x}, tmp_path / "other.safetensors")
    with pytest.raises(BadInput, match="holds 'something else'"):
        Moments.load(tmp_path / "other.safetensors")
    with pytest.raises(OutputError, match="cannot be written"):
        Moments.of(x).save(tmp_path / "absent" / "m.safetensors")
    with pytest.raises(BadInput, match="at least one"):
        Moments.merged([])


@dataclass(frozen=True)
class Split:
    """The least that counts as a split."""

    heads: torch.Tensor
    embedding: torch.Tensor
    convention: str = "centered"


def test_parts_are_divided_by_the_norm_and_brought_to_head_coordinates() -> None:
    torch.manual_seed(0)
    basis = HeadBasis.of(torch.randn(2, 2, 3, 8))
    z, embedding = torch.randn(20, 2, 2, 3), torch.randn(20, 8)
    heads = torch.einsum("ilhs,lhsd,lhde->ilhe", z.double(), basis.factor, basis.rows)
    norm = embedding.double().norm(dim=-1)[:, None, None, None]
    from_parts = Moments.of(Split(heads, embedding), basis=basis)
    expected = Moments.of(basis.whiten(z / norm.float()), basis=basis)
    np.testing.assert_allclose(from_parts.covariance, expected.covariance, atol=1e-7)
    joint = Moments.of(Split(heads, embedding))
    lifted = torch.einsum("lhde,lhdf,lhfg->lheg", basis.rows, expected.covariance, basis.rows)
    np.testing.assert_allclose(joint.covariance, lifted, atol=1e-7)
    with pytest.raises(BadInput, match="decompose with that convention"):
        Moments.of(Split(heads, embedding, "official"), basis=basis)


@settings(max_examples=30, deadline=None)
@given(source=st.integers(1, 7), embed=st.integers(1, 7), seed=st.integers(0, 999))
def test_head_coordinates_are_lossless_and_keep_inner_products(source, embed, seed) -> None:
    maps = torch.from_numpy(np.random.default_rng(seed).normal(size=(1, 2, source, embed)))
    basis = HeadBasis.of(maps)
    z = torch.from_numpy(np.random.default_rng(seed + 1).normal(size=(5, 1, 2, source)))
    x = torch.einsum("ilhs,lhse->ilhe", z, maps)
    u = basis.whiten(z)
    assert basis.d == min(source, embed)
    np.testing.assert_allclose(basis.factor @ basis.rows, maps, atol=1e-12)
    np.testing.assert_allclose(basis.restore(u), x, atol=1e-12)
    np.testing.assert_allclose(basis.coordinates(x), u, atol=1e-12)
    for head in range(2):
        in_head, in_joint = u[:, 0, head], x[:, 0, head]
        np.testing.assert_allclose(in_head @ in_head.T, in_joint @ in_joint.T, atol=1e-11)
    assert (torch.diagonal(basis.factor, dim1=-2, dim2=-1) >= 0).all()


def test_the_oracles_heads_lie_in_the_frames_that_its_weights_span(shared: Path) -> None:
    """Frames of the "official" convention from the state dict alone hold every one of the official code's contributions."""
    state = {k: v.float() for k, v in load_file(shared / "oracles/vit-a/weights.safetensors").items()}
    heads = torch.from_numpy(np.load(shared / "oracles/vit-a/decomposition.npz")["heads"])
    post = state["visual.ln_post.weight"][:, None] * state["visual.proj"]
    blocks = [f"visual.transformer.resblocks.{i}.attn.out_proj" for i in range(8)]
    maps = torch.stack([(state[f"{b}.weight"].T @ post).reshape(3, 64, 96) for b in blocks])
    biases = torch.stack([state[f"{b}.bias"] @ post for b in blocks])
    beta = state["visual.ln_post.bias"] @ state["visual.proj"]
    basis = HeadBasis.official(maps, biases, post.sum(0), beta, terms=17)
    assert basis.d == 67
    lost = basis.restore(basis.coordinates(heads)) - heads
    assert lost.norm() / heads.norm() < 1e-5
    # Only two of the three extra directions would not do.
    short = HeadBasis.of(torch.cat([maps, biases[:, None, None].expand(-1, 3, 1, -1)], 2))
    assert (short.restore(short.coordinates(heads)) - heads).norm() / heads.norm() > 1e-3


@pytest.mark.parametrize("convention", ["centered", "official"])
def test_coordinates_of_a_forward_restore_the_parts(convention: str) -> None:
    """On a real (tiny, random) open_clip tower: weights → frames, trace → coordinates, and back to `Parts`."""
    open_clip = pytest.importorskip("open_clip")
    import clip_anatomy as ca

    torch.manual_seed(3)
    vision = {"image_size": 16, "layers": 2, "width": 32, "head_width": 8, "patch_size": 8}
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    host = open_clip.CLIP(24, vision, text).eval()
    clip = ca.load(host)
    parts = ca.decompose(clip, torch.randn(5, 3, 16, 16), convention=convention)
    basis = basis_of(clip.image_tower, convention)
    assert basis.d == (8 if convention == "centered" else 11)
    restored = basis.restore(coordinates_of(basis, parts.source.network, parts.trace))
    expected = parts.heads / parts.embedding.norm(dim=-1)[:, None, None, None]
    np.testing.assert_allclose(restored, expected, atol=2e-6)
    last = basis_of(clip.image_tower, convention, layers=[1])
    np.testing.assert_allclose(
        last.restore(coordinates_of(last, parts.source.network, parts.trace)), expected[:, 1:], atol=2e-6
    )


def test_official_scalars_are_what_the_convention_divides_by() -> None:
    scale, mean, norm = torch.tensor([0.5]), torch.tensor([3.0]), torch.tensor([4.0])
    assert official_scalars(scale, mean, norm).tolist() == [[0.125, 0.375, 0.25]]
    assert official_scalars(scale, mean, norm, torch.tensor([2.0])).tolist() == [[0.25, 0.375, 0.25]]
