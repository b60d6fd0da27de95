"""What an atlas says by chance, and where what it says of a head does not agree."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from atlases import demo
from searching import clip, store

from clip_anatomy.naming.agreement import disagreements, picture_scores
from clip_anatomy.naming.atlas import AtlasHead, AtlasText
from clip_anatomy.naming.build_atlas import atlas
from clip_anatomy.naming.chance import chance_levels, rotated
from clip_anatomy.naming.pool import Pool
from clip_anatomy.naming.roles import Role
from clip_anatomy.naming.textspan import textspan
from clip_anatomy.report.atlas_pages import head_page, index_page
from clip_anatomy.report.atlas_table import print_atlas
from clip_anatomy.retrieval.search import search
from clip_anatomy.split.moments import Moments

__all__ = ["clip", "demo", "store"]  # fixtures


def text(name: str, about: str, alone: float, gain: float = 0.1) -> AtlasText:
    return AtlasText(name, about, alone, gain, 0.5, "", 0.1)


def head(role: Role, *texts: AtlasText, **more: Any) -> AtlasHead:
    return AtlasHead(7, 4, role, 0.1, 8, 0.9, 0.95, texts, **more)


COUNT = Role("count", 0.17, (("count", 0.33), ("shape", 0.22)), "shape", "count")


def test_a_rotation_keeps_what_texts_have_in_common_and_nothing_else() -> None:
    pool = F.normalize(torch.randn(30, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), dim=-1)
    turned = rotated(pool, 1)
    torch.testing.assert_close(turned @ turned.T, pool @ pool.T)
    assert float((turned * pool).sum(1).abs().mean()) < 0.35


def test_texts_of_the_heads_stand_above_chance_and_unrelated_texts_do_not() -> None:
    draw = torch.Generator().manual_seed(0)
    true = F.normalize(torch.randn(4, 40, generator=draw), dim=-1)
    images = torch.randn(500, 1, 1, 4, generator=draw) @ true + 0.02 * torch.randn(500, 1, 1, 40, generator=draw)
    moments = Moments.of(images)
    noise = F.normalize(torch.randn(60, 40, generator=draw), dim=-1)
    for pool, above in ((torch.cat([true, noise]), True), (noise, False)):
        span = textspan(moments, pool, 4, top_k=4)
        level = chance_levels(span, moments, pool, ["a"] * len(pool))[0, 0]
        explained = float(span.cumulative[0, 0, 3])
        assert (explained > level.explained + 0.2) is above
        assert level.role == pytest.approx(1.0)
        if not above:
            assert explained == pytest.approx(level.explained, abs=0.1)


def test_every_score_of_the_demo_has_its_chance_beside_it(demo: SimpleNamespace, capsys: Any) -> None:
    found = demo.atlas
    heads = [one for one in found.heads if one.texts]
    assert all(one.chance is not None and one.role_chance is not None for one in heads)
    assert sum(one.explained - (one.chance or 0) for one in heads) / len(heads) > 0.1
    assert sum(one.role.leading_share - (one.role_chance or 0) for one in heads) / len(heads) > 0.2
    print_atlas(found)
    table = capsys.readouterr().out
    pages = [head_page(found, at, {}) for at in range(3)]
    for one, page in zip(found.heads[:3], pages, strict=True):
        assert f"{one.explained:.0%} ({one.chance:.0%})" in table
        assert "as many shuffled texts explain" in page
        assert "Shuffled texts give their leading property" in page
    assert "In brackets: what texts reach by chance" in table
    assert "by chance" in index_page(found, {})
    clear = int(found.agreement["clear"])
    assert f"{clear} heads are driven" in index_page(found, {})
    assert type(found).of_dict(found.to_dict()) == found


def test_random_weights_are_announced_in_an_atlas(clip: Any, store: Any) -> None:
    pool = Pool(("red", "blue", "one", "two"), ("colour", "colour", "count", "count"), "here")
    found = atlas(store, clip, pool, texts=3, resamples=0, images=1, picks=1, cache=False)
    assert sum("look untrained" in note for note in found.notes) == 2
    assert "look untrained" in index_page(found, {})


def test_where_role_texts_pictures_and_truth_do_not_agree_is_said() -> None:
    texts = (text("circles", "shape", 0.29), text("two objects", "count", 0.44), text("three", "count", 0.1))
    one = head(COUNT, *texts, truth=(("count", 0.89),), role_chance=0.19)
    said = "; ".join(disagreements(one, {"circles": 0.1, "two objects": 1.5}))
    for part in (
        "its picked texts are about shape, the texts that it tells apart best about count",
        "its first text, “circles”, is about shape and not about count",
        "along “circles” are no more like that text than others",
        "no clearer than that of shuffled texts (19% of the evidence)",
        "in truth count drives it to 89%, and its texts show",
    ):
        assert part in said
    assert "“two objects”" not in said
    sure = Role("count", 0.8, (("count", 0.8),), "count", "count")
    assert disagreements(head(sure, texts[1], truth=(("count", 0.89),), chance=0.3, role_chance=0.2), {}) == ()
    assert disagreements(head(sure, texts[1], truth=(("shape", 0.7),)), {}) == ("in truth shape drives it (70%)",)
    assert disagreements(head(sure, texts[1], chance=0.95), {}) == (
        "its texts explain no more than shuffled ones do (95%)",
    )


def test_the_leading_text_is_of_the_role_and_comes_first() -> None:
    texts = (text("circles", "shape", 0.29), text("two objects", "count", 0.44), text("three", "count", 0.1))
    one = head(COUNT, *texts)
    assert one.leading is texts[1]
    assert one.ordered == (texts[1], texts[0], texts[2])
    assert head(Role("mixed", 0.0), *texts).leading is texts[1]
    assert head(Role("unnamed", 0.0)).leading is None


def test_the_counting_head_of_the_demo_says_that_circles_are_not_its_subject(demo: SimpleNamespace) -> None:
    one = demo.atlas.head(7, 4)
    assert one.truth[0][0] == "count"
    assert one.leading is not None
    if one.role.name == "count":
        assert one.leading.property == "count"
    assert one.role.name == "count" or one.doubts
    at = next(at for at, other in enumerate(demo.atlas.heads) if other is one)
    assert ("does not agree" in head_page(demo.atlas, at, {})) is bool(one.doubts)
    if one.texts[0].property != "count":
        assert any(one.texts[0].text in doubt for doubt in one.doubts) or one.role.name != "count"


def test_pictures_are_like_their_text_or_said_not_to_be(demo: SimpleNamespace) -> None:
    rows = list(demo.store.rows())
    words = {"in the water": "water", "on the grass": "grass"}
    unit = {text: F.normalize(demo.clip.encode_text([text])[0], dim=0) for text in words}
    right = {text: [row.index for row in rows if row.meta["background"] == name] for text, name in words.items()}
    wrong = {text: [row.index for row in rows if row.meta["background"] == "sand"] for text in words}
    good, bad = picture_scores(demo.store, right, unit), picture_scores(demo.store, wrong, unit)
    assert all(good[text] > 1 and bad[text] < 0.5 for text in words)
    embeddings = F.normalize(torch.as_tensor(demo.store.embeddings()).float(), dim=-1)
    cosines = embeddings @ unit["in the water"]
    longhand = (cosines[right["in the water"]].mean() - cosines.mean()) / cosines.std()
    assert good["in the water"] == pytest.approx(float(longhand), abs=1e-3)
    assert picture_scores(demo.store, {"in the water": []}, unit) == {}


def test_a_title_of_search_is_as_strong_as_its_evidence(demo: SimpleNamespace) -> None:
    name = demo.store.column("id")[0]
    found = search(demo.store, name, "property=background", k=2, clip=demo.clip, atlas=demo.atlas)
    assert found.evidence > 0.5
    assert found.title.startswith("Same background as ")

    def weaker(share: float | None) -> Any:
        heads = tuple(replace(one, evidence=share) for one in found.heads[:1])
        return replace(found, query=replace(found.query, heads=heads)).title

    assert "weakly (15% of the evidence at best) by background" in weaker(0.15)
    assert "Same" not in weaker(0.49)
    assert weaker(0.5).startswith("Same background as ")
    assert weaker(None).endswith(", by background")
