"""Object storage that fails: retries, lost answers, cut uploads and downloads, credentials that expire, buckets that are not there."""

import pytest
from buckets import proxy, s3, s3_server  # noqa: F401 (fixtures)

from clip_anatomy import network, objects
from clip_anatomy.cli.wording import in_cli_words
from clip_anatomy.errors import BadInput, ObjectStoreError
from clip_anatomy.files import digest
from clip_anatomy.objects import ObjectPlace


@pytest.fixture
def place(s3, monkeypatch):  # noqa: F811
    monkeypatch.setattr(objects, "RETRIES", 4)
    objects._opened.cache_clear()
    yield ObjectPlace.of(f"{s3}/a/store")
    objects._opened.cache_clear()


def test_objects_are_written_listed_read_and_deleted(place, tmp_path):
    for at in range(12):
        place.put(f"x/{at:04d}", str(at).encode())
    place.put("y/one", tmp_path.joinpath("f").write_bytes(b"content") and tmp_path / "f")
    names = [name for name, _ in place.names("x/")]
    assert names == [f"x/{at:04d}" for at in range(12)]
    assert dict(place.names())["y/one"] == 7
    assert place.folders("") == ["x", "y"]
    assert place.get("x/0007") == b"7"
    assert place.get("x/none") is None
    assert place.measure("y/one") == (7, digest(b"content"))
    place.fetch("y/one", tmp_path / "deep" / "copy", 7, digest(b"content"))
    assert (tmp_path / "deep" / "copy").read_bytes() == b"content"
    with pytest.raises(ObjectStoreError, match="y/one: 7 bytes instead of 8. Put a whole copy in its place"):
        place.fetch("y/one", tmp_path / "other", 8, digest(b"contents"))
    assert not (tmp_path / "other").exists()
    place.delete([*names, "y/one", "y/none"])
    assert list(place.names()) == []


@pytest.mark.slow
def test_a_listing_of_more_than_one_answer(place):
    for at in range(1003):
        place.put(f"x/{at:04d}", b"")
    assert [name for name, _ in place.names("x/")] == [f"x/{at:04d}" for at in range(1003)]
    place.delete([f"x/{at:04d}" for at in range(1003)])
    assert list(place.names()) == []


def test_what_was_written_is_listed_at_once_and_a_conditional_put_wins_once(place):
    assert place.put_if_absent("commits/1", b"a")
    assert [name for name, _ in place.names("commits/")] == ["commits/1"]
    assert not place.put_if_absent("commits/1", b"b")
    assert place.get("commits/1") == b"a"


def test_a_server_that_answers_503_for_a_while_is_asked_again(place, proxy):  # noqa: F811
    proxy.fault = lambda method, path, before: (503, "SlowDown") if before < 2 else None
    place.put("a", b"1")
    assert place.get("a") == b"1"
    assert list(place.names()) == [("a", 1)]
    assert (proxy.asked["PUT"], proxy.asked["GET"]) == (3, 4)


def test_a_server_that_stays_busy_is_said_with_what_to_do(place, proxy):  # noqa: F811
    proxy.fault = lambda *_: (503, "SlowDown")
    with pytest.raises(ObjectStoreError, match=r"s3://\S+ does not serve requests at the moment .*type the same command again: what is committed is kept"):  # fmt: skip
        place.put("a", b"1")
    assert proxy.asked["PUT"] == 5


def test_a_lost_answer_to_the_put_that_decides_is_no_loss(place, proxy):  # noqa: F811
    """The server kept the first put; obstore asks again and is refused. Believing that another one won would delete a committed shard."""
    proxy.fault = lambda method, path, before: "lose answer" if method == "PUT" and before == 0 else None
    assert place.put_if_absent("commits/1", b"mine")
    assert place.get("commits/1") == b"mine"


def test_a_refusal_while_the_server_decides_between_two_is_asked_again(place, proxy):  # noqa: F811
    proxy.fault = lambda method, path, before: (409, "ConditionalRequestConflict") if method == "PUT" and before < 3 else None  # fmt: skip
    assert place.put_if_absent("commits/1", b"mine")


def test_an_upload_that_is_cut_in_the_middle_leaves_nothing_half(place, proxy, tmp_path):  # noqa: F811
    (tmp_path / "large").write_bytes(bytes(range(256)) * 50_000)  # 12.8 MB, put in parts
    proxy.fault = lambda method, path, before: "cut upload" if method == "PUT" and before < 2 else None
    place.put("large", tmp_path / "large")
    assert place.measure("large") == (12_800_000, digest((tmp_path / "large").read_bytes()))
    proxy.fault = lambda method, path, before: "cut upload" if method == "PUT" else None
    with pytest.raises(ObjectStoreError):
        place.put("other", tmp_path / "large")
    proxy.fault = lambda *_: None
    assert [name for name, _ in place.names()] == ["large"]


def test_a_download_that_is_cut_is_gone_on_with(place, proxy, tmp_path):  # noqa: F811
    content = bytes(range(256)) * 10_000
    place.put("a", content)
    proxy.fault = lambda method, path, before: "cut download" if method == "GET" and before < 2 else None
    place.fetch("a", tmp_path / "a", len(content), digest(content))
    assert (tmp_path / "a").read_bytes() == content


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ((400, "ExpiredToken"), r"the credentials for s3://\S+ have expired. Get new ones \(for AWS: aws sso login\)"),
        ((403, "ExpiredToken"), r"the credentials for s3://\S+ have expired"),
        ((403, "InvalidAccessKeyId"), r"s3://\S+ does not know these credentials .* Set AWS_ACCESS_KEY_ID and"),
        ((403, "AccessDenied"), r"these credentials may not (?:read|write) s3://\S+/store/"),
    ],
)
def test_refused_credentials_are_said_with_what_to_set(place, proxy, answer, says):  # noqa: F811
    proxy.fault = lambda *_: answer
    for ask in (lambda: place.get("a"), lambda: place.put("a", b""), lambda: list(place.names("c/")), lambda: place.put_if_absent("a", b"")):  # fmt: skip
        with pytest.raises(ObjectStoreError, match=says):
            ask()


def test_missing_credentials_and_buckets_and_servers_are_said(place, s3, monkeypatch):  # noqa: F811
    for ask in (lambda at: at.get("a"), lambda at: at.put("a", b""), lambda at: list(at.names())):
        with pytest.raises(ObjectStoreError, match="there is no bucket s3://nowhere. Make it, or look at its name and at AWS_REGION and AWS_ENDPOINT_URL"):  # fmt: skip
            ask(ObjectPlace.of("s3://nowhere/x"))
    monkeypatch.setattr(objects, "RETRIES", 0)
    with monkeypatch.context() as without:
        without.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        with pytest.raises(ObjectStoreError, match=r"cannot be reached .*Look at the network and at AWS_ENDPOINT_URL"):
            place.get("a")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")  # where a machine of the cloud would be asked
    with pytest.raises(ObjectStoreError, match=r"there are no credentials for s3://\S+. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):  # fmt: skip
        place.get("a")


def test_an_address_that_a_file_names_is_not_asked(s3):  # noqa: F811
    with network.named_by_a_file():
        with pytest.raises(BadInput, match="named by a file, not by you, and was not fetched") as error:
            ObjectPlace.of(s3)
        with network.allow_network():
            assert ObjectPlace.of(s3).url == s3
    assert in_cli_words(str(error.value)).endswith("was not fetched. Type: --allow-network")
