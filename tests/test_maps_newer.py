"""SC-CLIP, RF-CLIP, ResCLIP and PEARL against their formulas written out longhand, one image at a time, in double precision."""

from math import exp

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor

import clip_anatomy as ca
from clip_anatomy.errors import BadSpec
from clip_anatomy.maps.dense_steps import block_at, same_answer
from clip_anatomy.maps.laplacian import class_prior
from clip_anatomy.maps.pearl import polar
from clip_anatomy.maps.token_repair import extreme_channels, local_outlier_factor, second_eigenvector
from clip_anatomy.towers.embedding import embed_image  # patches and positions: tested against the host elsewhere

pytestmark = pytest.mark.usefixtures("one_thread")

LAYERS, HEADS, D, GRID = 12, 2, 8, (4, 5)
PATCHES = GRID[0] * GRID[1]
NEWER = ["scclip", "rfclip", "resclip", "pearl"]
BESIDE = [[j for j in range(PATCHES) if j != i and abs(j // 5 - i // 5) < 2 and abs(j % 5 - i % 5) < 2] for i in range(PATCHES)]  # fmt: skip


@pytest.fixture(scope="module")
def host():
    return tiny.open_clip_model(layers=LAYERS, heads=HEADS, d=D).double()


@pytest.fixture(scope="module")
def clip(host):
    return ca.load(host, tokenizer=None, parity=False, dtype="float64")


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(3, 3, 32, 40, generator=torch.Generator().manual_seed(0)).double()


@pytest.fixture(scope="module")
def text(clip):
    return torch.randn(4, clip.image_tower.embed, generator=torch.Generator().manual_seed(1)).double()


def qkv(block, x: Tensor) -> list[Tensor]:
    """[head, token, d] each, of tokens before ln1."""
    parts = F.linear(block.ln_1(x), block.attn.in_proj_weight, block.attn.in_proj_bias).chunk(3, -1)
    return [z.view(len(x), HEADS, D).transpose(0, 1) for z in parts]


def out(block, mixed: Tensor) -> Tensor:
    return block.attn.out_proj(mixed.transpose(0, 1).flatten(1))


def attend(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.transpose(1, 2) / D**0.5).softmax(-1)


def plain(host, clip, picture: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The streams h_0 … h_11 into each block, and each block's attention."""
    x = embed_image(clip.image_tower, picture[None])[0]
    into, attention = [], []
    for block in host.visual.transformer.resblocks:
        into.append(x)
        q, k, v = qkv(block, x)
        attention.append(attend(q, k))
        x = x + out(block, attention[-1] @ v)
        x = x + block.mlp(block.ln_2(x))
    return into, attention


def compared(host, patches: Tensor, text: Tensor) -> Tensor:
    found = host.visual.ln_post(patches) @ host.visual.proj
    return F.normalize(found, dim=-1) @ F.normalize(text, dim=-1).T


def mended(tokens: Tensor, bad: list[int]) -> Tensor:
    """Outliers ← the mean of their good neighbours; groups of them from the edge inwards."""
    tokens, left = tokens.clone(), set(bad)
    while left and len(left) < len(tokens):
        ready = {i: [j for j in BESIDE[i] if j not in left] for i in left}
        fresh = {i: tokens[good].mean(0) for i, good in ready.items() if good}
        for i, value in fresh.items():
            tokens[i] = value
        left -= set(fresh)
    return tokens


def pulled(tokens: Tensor, similar: Tensor, least: float) -> Tensor:
    rows = []
    for i in range(len(tokens)):
        kept = [j for j in range(len(tokens)) if similar[i, j] >= least]
        rows.append(sum(similar[i, j] * tokens[j] for j in kept) / sum(similar[i, j] for j in kept))
    return torch.stack(rows)


def factor(tokens: Tensor, neighbours: int, *, released: bool) -> list[float]:
    far = [[float(((a - b) ** 2).sum()) for b in tokens] for a in tokens]
    near = [sorted((j for j in range(len(tokens)) if j != i), key=lambda j, i=i: far[i][j])[:neighbours] for i in range(len(tokens))]  # fmt: skip
    reach = [far[i][near[i][-1]] for i in range(len(tokens))]
    spread = [float(np.mean([reach[i] if released else max(far[i][j], reach[j]) for j in near[i]])) for i in range(len(tokens))]  # fmt: skip
    return [float(np.mean([spread[i] / spread[j] for j in near[i]])) for i in range(len(tokens))]


def cosines(tokens: Tensor) -> Tensor:
    return torch.stack([torch.stack([F.cosine_similarity(a, b, dim=0) for b in tokens]) for a in tokens])


@pytest.mark.parametrize(("neighbours", "released"), [(30, True), (6, True), (6, False)])
@torch.no_grad()
def test_scclip(host, clip, pixels, *, neighbours, released) -> None:
    text = torch.randn(4, clip.image_tower.embed).double()
    found = ca.heatmap(clip, pixels, text, "scclip", outliers=0.2, neighbours=neighbours, released=released)
    block = host.visual.transformer.resblocks[-1]
    for picture, maps in zip(pixels, found.values, strict=True):
        into, _ = plain(host, clip, picture)
        score = factor(into[11][1:], min(neighbours, PATCHES // 2), released=released)
        bad = [i for i in range(PATCHES) if score[i] > np.quantile(score, 0.8)]
        assert len(bad) == 4
        middle, early = cosines(mended(into[9][1:], bad)), cosines(into[4][1:])
        steer = torch.zeros(PATCHES, PATCHES, dtype=torch.float64)
        for i in range(PATCHES):
            kept = middle[i] >= middle.mean()
            steer[i, kept] = (3 * (middle[i, kept] - middle.mean())).softmax(-1)

        def written(patches: Tensor, row: Tensor, steer=steer, early=early) -> Tensor:
            _, k, v = qkv(block, patches)
            return pulled(out(block, (steer + attend(k, k)) / 2 @ v) + 0.3 * row, early, 0.4)

        x = pulled(mended(into[11][1:], bad), middle, 0.4)
        total = sum(into[level] for level in range(4, 11))
        tokens = written(x, into[11][0]) + written(total[1:], total[0])
        torch.testing.assert_close(maps.flatten(1).T, compared(host, tokens, text).float(), atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_rfclip(host, clip, pixels, text) -> None:
    channels = (1, 7, 12)
    found = ca.heatmap(clip, pixels, text, "rfclip", channels=channels, above=2.0)
    seen = 0
    for picture, maps in zip(pixels, found.values, strict=True):
        x = embed_image(clip.image_tower, picture[None])[0]
        total = torch.zeros(HEADS, PATCHES, PATCHES, dtype=torch.float64)
        for block in host.visual.transformer.resblocks:
            share = x[1:].abs() / x[1:].abs().sum(-1, keepdim=True)
            bad = [i for i in range(PATCHES) if share[i, list(channels)].max() > 2 / (HEADS * D)]
            seen += len(bad)
            x = x.clone()
            x[1:, list(channels)] = mended(x[1:, list(channels)], bad)
            q, k, v = qkv(block, x)
            kk = attend(k[:, 1:], k[:, 1:])
            total += kk / LAYERS
            if block is host.visual.transformer.resblocks[-1]:
                tokens = out(block, total @ v[:, 1:])
                break
            w = (kk.mean(0) + kk.mean(0).T).numpy()
            degree = np.diag(w.sum(1))
            values, vectors = np.linalg.eig(np.linalg.inv(degree) @ (degree - w))
            cut = vectors[:, np.argsort(values.real)[1]].real
            cut = cut * np.sign(cut[np.abs(cut).argmax()])
            front = [i for i in range(PATCHES) if cut[i] > cut.mean() and i not in bad]
            a = attend(q, k)
            for head in range(HEADS):
                for row in a[head]:
                    freed = sum(0.7 * row[1 + i] for i in bad)
                    there = sum(row[1 + i] for i in front)
                    for i in bad:
                        row[1 + i] *= 0.3
                    for i in front:
                        row[1 + i] *= 1 + freed / there
            x = x + out(block, a @ v)
            x = x + block.mlp(block.ln_2(x))
        torch.testing.assert_close(maps.flatten(1).T, compared(host, tokens, text).float(), atol=1e-6, rtol=1e-5)
    assert PATCHES < seen < 0.7 * PATCHES * LAYERS * len(pixels)


def crossed(answers: list[int]) -> np.ndarray:
    """ResCLIP's matrix of equal answers, pair by pair."""
    found = np.zeros((PATCHES, PATCHES))
    longest = max(GRID) - 1
    for i in range(PATCHES):
        for j in range(PATCHES):
            if answers[i] != answers[j]:
                continue
            (a, b), (c, d) = divmod(i, 5), divmod(j, 5)
            steps = max(abs(a - c), abs(b - d))
            line = [(round(a + (c - a) * s / steps), round(b + (d - b) * s / steps)) for s in range(1, steps)]
            whole = all(answers[row * 5 + col] == answers[i] for row, col in line)
            found[i, j] = 1 if whole else exp(-steps / longest)
    reach = min(PATCHES, 31) // 2
    kernel = np.exp(-(np.arange(-reach, reach + 1) ** 2) / 50)
    smooth = np.stack([np.convolve(row, kernel / kernel.sum(), mode="full")[reach:-reach] for row in found])
    return smooth / smooth.sum(1, keepdims=True)


@pytest.mark.parametrize("feedback", [0.0, 0.7])
@torch.no_grad()
def test_resclip(host, clip, pixels, feedback) -> None:
    axes = torch.eye(clip.image_tower.embed).double()
    tokens = ca.heatmap(clip, pixels[:1], axes, "resclip", feedback=0.0).values[0].flatten(1).T
    text = torch.stack([tokens[a] - tokens[b] for a, b in ((3, 12), (12, 3), (7, 18))]).double()  # answers differ
    block = host.visual.transformer.resblocks[-1]
    found = ca.heatmap(clip, pixels, text, "resclip", feedback=feedback, least=0.4, logit_scale=15.0)
    for at, (picture, maps) in enumerate(zip(pixels, found.values, strict=True)):
        into, attention = plain(host, clip, picture)
        _, k, v = qkv(block, into[-1])
        middle = sum(attention[level - 1] for level in (6, 7, 8, 9)) / 4
        near = torch.zeros(PATCHES + 1, PATCHES + 1, dtype=torch.float64)
        for i in range(PATCHES):
            for j in range(PATCHES):
                near[i + 1, j + 1] = exp(-((i // 5 - j // 5) ** 2 + (i % 5 - j % 5) ** 2) / 50)

        def answered(scores: Tensor, near=near, v=v, middle=middle) -> Tensor:
            a = 2.0 * (0.6 * (scores + near).softmax(-1) + 0.4 * middle)
            return compared(host, out(block, a @ v)[1:], text)

        scores = k @ k.transpose(1, 2) / D**0.5
        expected = answered(scores)
        if feedback:
            chance = (expected * 15).softmax(-1)
            answers = [int(p.argmax()) if p.max() >= 0.4 else 0 for p in chance]
            assert len(set(answers)) > 1 or at > 0
            same = crossed(answers)
            bent = torch.zeros(PATCHES + 1, PATCHES + 1, dtype=torch.float64)
            bent[1:, 1:] = torch.from_numpy(same / same.max())
            expected = answered(1.8 * (0.3 * scores + 0.7 * bent))
        torch.testing.assert_close(maps.flatten(1).T, expected.float(), atol=1e-6, rtol=1e-5)


def propagated(cosine: Tensor, picture: Tensor, clip, text: Tensor, *, full: bool) -> np.ndarray:
    """PEARL's Laplacian with its matrix written out: patch by patch, neighbour by neighbour."""
    z = 40 * cosine.numpy()
    colours = picture * torch.tensor(clip.preprocess.std).view(3, 1, 1) + torch.tensor(clip.preprocess.mean).view(
        3, 1, 1
    )
    light = (colours * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0).numpy()
    grey = [light[i // 5 * 8 : i // 5 * 8 + 8, i % 5 * 8 : i % 5 * 8 + 8].mean() for i in range(PATCHES)]
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    unit = (text / text.norm(dim=1, keepdim=True)).numpy()
    s = np.exp(2 * unit @ unit.T)
    s = s / s.sum(1, keepdims=True) + 10 * np.eye(len(s))
    s = s / s.sum(1, keepdims=True)
    if not full:
        assert s.diagonal().min() > 0.91  # the release reads these alone: nearly one number for all
        s = np.diag(s.diagonal())
    matrix = np.diag([max(0.05, p[i].max()) ** 2 * (1 + p[i] @ s @ p[i]) for i in range(PATCHES)])
    sure = matrix.diagonal().copy()
    for pairs in ([(i, i + 1) for i in range(PATCHES) if i % 5 < 4], [(i, i + 5) for i in range(PATCHES - 5)]):
        mean = np.mean([abs(grey[a] - grey[b]) for a, b in pairs]) + 1e-6
        for a, b in pairs:
            w = min(1.0, exp(-5 * abs(grey[a] - grey[b]) / mean) * (1 + p[b] @ s @ p[a]))
            matrix[a, a] += w
            matrix[b, b] += w
            matrix[a, b] -= w
            matrix[b, a] -= w
    f, r = z.copy(), sure[:, None] * z - matrix @ z
    d = r.copy()
    for _ in range(25):
        step = (r**2).sum() / ((d * (matrix @ d)).sum() + 1e-12)
        f, last = f + step * d, (r**2).sum()
        r = r - step * (matrix @ d)
        d = r + (r**2).sum() / (last + 1e-12) * d
    np.testing.assert_allclose(f, np.linalg.solve(matrix, sure[:, None] * z), atol=1e-2)
    return f / 40


@pytest.mark.parametrize("prior", ["none", "released", "full"])
@torch.no_grad()
def test_pearl(host, clip, pixels, text, prior) -> None:
    found = ca.heatmap(clip, pixels, text, "pearl", prior=prior)
    for picture, maps in zip(pixels, found.values, strict=True):
        into, _ = plain(host, clip, picture)
        block = host.visual.transformer.resblocks[-1]
        q, k, v = qkv(block, into[-1])
        mixed = []
        for head in range(HEADS):
            w = q[head, 1:].norm(dim=-1)
            qc, kc = (z[head] - (w[:, None] * z[head, 1:]).sum(0) / w.sum() for z in (q, k))
            m = kc[1:].T @ qc[1:]
            m = m / m.pow(2).sum().sqrt()
            u, s, vh = torch.linalg.svd(m)
            for _ in range(5):
                s = 1.5 * s - 0.5 * s**3  # on the singular values alone
            turn = u @ torch.diag(s) @ vh
            scores = (q[head] @ (k[head] @ turn).T + 0.08 * kc @ kc.T) / D**0.5
            mixed.append(scores.softmax(-1) @ v[head])
        expected = compared(host, out(block, torch.stack(mixed))[1:], text)
        if prior != "none":
            expected = torch.from_numpy(propagated(expected, picture, clip, text, full=prior == "full"))
        torch.testing.assert_close(maps.flatten(1).T, expected.float(), atol=2e-6, rtol=1e-5)


def test_the_released_prior_of_pearl_is_inert(clip, pixels) -> None:
    """Two texts that are nearly one: the product of the formula lets them speak for each other, the released one does not."""
    text = torch.randn(3, 12, generator=torch.Generator().manual_seed(5)).double()
    text[1] = text[0] + 0.05 * text[1]
    assert class_prior(text, "released").count_nonzero() == 3
    assert class_prior(text, "full")[0, 1] > 2 * class_prior(text, "full")[0, 2]
    released, full = (ca.heatmap(clip, pixels, text, "pearl", prior=one).values for one in ("released", "full"))
    assert not torch.allclose(released, full, atol=1e-5)
    with pytest.raises(BadSpec, match="Type: prior='released'"):
        ca.heatmap(clip, pixels, text, "pearl", prior="inert")


@pytest.mark.parametrize("method", NEWER)
def test_a_batch_gives_what_its_pictures_give_alone_at_any_size(clip, text, method) -> None:
    for rows, cols in [(8, 8), (16, 72), (80, 40)]:  # one patch alone, too
        pixels = torch.randn(3, 3, rows, cols, generator=torch.Generator().manual_seed(rows)).double()
        found = ca.heatmap(clip, pixels, text, method).values
        assert found.shape == (3, 4, rows // 8, cols // 8)
        assert found.isfinite().all()
        for at, alone in enumerate(pixels):
            torch.testing.assert_close(ca.heatmap(clip, alone[None], text, method).values[0], found[at])


@pytest.mark.parametrize("method", NEWER)
def test_towers_of_other_kinds(method) -> None:
    """Averaged patches, an attention pool, rotations and registers: nothing is tied to a class token in front."""
    for vision in ({"pool_type": "avg"}, {"attentional_pool": True, "attn_pooler_heads": 2}):
        other = ca.load(tiny.open_clip_model(layers=4, vision=vision), tokenizer=None, parity=False)
        pixels = torch.randn(2, 3, 32, 40)
        assert ca.heatmap(other, pixels, torch.randn(3, 12), method).values.isfinite().all()
    shallow = ca.load(tiny.open_clip_model(layers=1), tokenizer=None, parity=False)  # no block before the last
    assert ca.heatmap(shallow, torch.randn(2, 3, 32, 40), torch.randn(3, 12), method).values.isfinite().all()


def test_the_cut_of_a_graph_of_two_halves_tells_them_apart() -> None:
    weights = torch.full((1, 60, 60), 0.01, dtype=torch.float64)
    weights[:, :25, :25] = weights[:, 25:, 25:] = 1.0
    cut = second_eigenvector(weights)[0]
    assert (cut[:25] > 0).all()
    assert (cut[25:] < 0).all()
    noise = torch.rand(2, 90, 90, generator=torch.Generator().manual_seed(3)).double()
    noise = (noise + noise.transpose(1, 2)) ** 8
    for graph, found in zip(noise, second_eigenvector(noise), strict=True):
        degree = graph.sum(1)
        values, vectors = torch.linalg.eigh(torch.diag(degree**-0.5) @ graph @ torch.diag(degree**-0.5))
        expected = vectors[:, -2] / degree.sqrt()
        assert F.cosine_similarity(expected, found, dim=0).abs() > 0.9999
        assert values[-2] < 1


def test_the_steps_of_the_operator(clip) -> None:
    torch.testing.assert_close(polar(torch.tensor([[[0.0, -5.0], [5.0, 0.0]]]), 12), torch.tensor([[[0.0, -1.0], [1.0, 0.0]]]))  # fmt: skip
    points = torch.tensor([[[0.0], [0.1], [0.2], [0.3], [5.0]]])
    for released in (True, False):
        score = local_outlier_factor(points, 2, released=released)[0]
        assert score.argmax() == 4
        assert score[4] > 50
        assert score[1] < 2
    grid = same_answer(torch.tensor([[0, 1, 0]]), (1, 3), std=0.01)
    torch.testing.assert_close(grid[0], torch.tensor([[1, 0, exp(-1)], [0, 1, 0], [exp(-1), 0, 1]]) / torch.tensor([[1 + exp(-1)], [1], [1 + exp(-1)]]))  # fmt: skip
    assert block_at(clip.image_tower, 0.75) == 9
    assert block_at(clip.image_tower, 1.0) == 11
    with pytest.raises(BadSpec, match="is no share of the depth"):
        ca.heatmap(clip, torch.zeros(1, 3, 32, 32).double(), torch.randn(2, 12), "scclip", middle=9.0)


def test_extreme_channels_are_a_property_of_the_model() -> None:
    model = tiny.open_clip_model(layers=4)
    with torch.no_grad():
        model.visual.positional_embedding[:, 5] += 40
        model.visual.positional_embedding[:, 11] -= 40
        model.visual.ln_pre.weight.fill_(1)
        model.visual.ln_pre.bias.fill_(0)
    clip = ca.load(model, tokenizer=None, parity=False)
    assert extreme_channels(clip, 2) == (5, 11)
    pixels, text = torch.randn(1, 3, 32, 32), torch.randn(2, 12)
    for wrong in ((5, 16), (), 0):
        with pytest.raises(BadSpec, match="some of 0 to 15 were expected. Type: channels=3"):
            ca.heatmap(clip, torch.randn(1, 3, 32, 32), torch.randn(2, 12), "rfclip", channels=wrong)
    by_number = ca.heatmap(clip, pixels, text, "rfclip", channels=(5, 11)).values
    assert torch.equal(by_number, ca.heatmap(clip, pixels, text, "rfclip", channels=2).values)
