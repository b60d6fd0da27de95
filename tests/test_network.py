"""Nothing is fetched that nobody asked for, no answer is waited for too long, and no model's own code runs."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tiny import open_clip_model

import clip_anatomy as ca
from clip_anatomy.cli.main import main
from clip_anatomy.data.open_dataset import picture_of
from clip_anatomy.errors import BadCheckpoint, BadImage
from clip_anatomy.images.decode import read_image
from clip_anatomy.images.fetch import fetch
from clip_anatomy.loading.load import load_recorded
from clip_anatomy.network import may_fetch, named_by_a_file


class Hub(BaseHTTPRequestHandler):
    """A hub that has nothing, and counts who asks."""

    def do_GET(self) -> None:
        if self.path.startswith("/drip"):
            self.send_response(200)
            self.flush_headers()
            try:
                for _ in range(100):
                    self.wfile.write(b"X-Drip: 1\r\n")
                    self.wfile.flush()
                    time.sleep(0.05)
            except OSError:
                pass
            return
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_POST = do_GET  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked = []  # type: ignore[attr-defined]
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def of_the_hub(tmp_path: Path) -> Path:
    """A folder whose config names a text tower that only the hub has."""
    from safetensors.torch import save_file

    save_file(dict(open_clip_model(layers=1, heads=1, d=8).state_dict()), tmp_path / "open_clip_model.safetensors")
    vision = {"image_size": 32, "patch_size": 8, "layers": 1, "width": 8, "head_width": 8}
    text = {"hf_model_name": "nobody/tracker", "hf_tokenizer_name": "nobody/tracker"}
    config = {"embed_dim": 8, "vision_cfg": vision, "text_cfg": text, "custom_text": True}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    return tmp_path


@pytest.mark.parametrize("allowed", [False, True])
def test_a_folder_reaches_the_hub_only_if_allowed(allowed: bool, hub: Any, of_the_hub: Path) -> None:
    with ca.allow_network() if allowed else nullcontext(), pytest.raises(BadCheckpoint, match="allow_network"):
        ca.load(of_the_hub)
    assert bool(hub.asked) == allowed


@pytest.mark.parametrize("recorded", ["hf:nobody/tracker", "open_clip:ViT-B-32/laion2b_s34b_b79k"])
def test_what_a_store_names_is_not_fetched(recorded: str, hub: Any, tmp_path: Path, monkeypatch: Any) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BadCheckpoint):
        load_recorded(None, recorded)
    assert hub.asked == []
    assert constants.HF_HUB_OFFLINE is False  # as it was


def test_the_dataset_that_a_store_names_is_not_fetched(hub: Any) -> None:
    pytest.importorskip("datasets")
    with pytest.raises(BadImage, match=r"cannot be shown.*allow_network"):
        picture_of("hf-dataset:nobody/tracker", "0", "a.png")
    assert hub.asked == []


def test_the_switch_is_one_for_all() -> None:
    assert may_fetch(requested=True)
    assert not may_fetch(requested=False)
    with named_by_a_file():
        assert not may_fetch(requested=True)
        with ca.allow_network():
            assert may_fetch(requested=False)
    with pytest.raises(BadImage, match="none is fetched unless asked"):
        read_image("http://127.0.0.1:1/a.png")
    with ca.allow_network(), pytest.raises(BadImage, match="cannot be fetched"):
        read_image("http://127.0.0.1:1/a.png")


def test_the_command_line_has_the_same_switch(monkeypatch: Any) -> None:
    seen: list[bool] = []

    def run(words: list[str]) -> int:
        seen.append(may_fetch(requested=False))
        assert words == ["check"]
        return 0

    monkeypatch.setattr("clip_anatomy.cli.main._run", run)
    main(["check", "--allow-network"])
    main(["check"])
    assert seen == [True, False]


def test_a_server_that_drips_is_cut_off(hub: Any) -> None:
    began = time.monotonic()
    with pytest.raises(BadImage, match=r"not finished after 0.3 s"):
        fetch(f"http://127.0.0.1:{hub.server_address[1]}/drip.png", timeout=0.3)
    assert time.monotonic() - began < 2


def test_code_of_a_models_folder_never_runs(tmp_path: Path, monkeypatch: Any) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "other", "auto_map": {"AutoConfig": "code.C"}}))
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').write('x')\n")

    def asked(*_: Any) -> str:
        raise AssertionError("asked on standard input whether code may run")

    monkeypatch.setattr("builtins.input", asked)
    with pytest.raises(BadCheckpoint):
        ca.load(tmp_path)
    assert not (tmp_path / "ran").exists()
