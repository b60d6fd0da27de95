"""The studio under load: many clients that send pictures, ask texts and switch heads at once; what encoding together saves; how fast one head goes off.

python bench/studio.py                        # 32 clients for 30 s on the bundled model
python bench/studio.py --model ViT-B-16 --seconds 120
"""

import argparse
import io
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import torch
from PIL import Image

import clip_anatomy as ca
from clip_anatomy.studio import encoder
from clip_anatomy.studio.session import Session

TEXTS = ["a bird", "a fish", "the sky", "water", "something red", "a brick wall"]


def opened(name: str) -> ca.Clip:
    if name == "demo":
        return ca.load("demo")
    import open_clip

    torch.manual_seed(0)
    return ca.load(open_clip.CLIP(**open_clip.get_model_config(name)).eval())


def serve(name: str) -> None:

    import uvicorn

    from clip_anatomy.studio.server import create_app, listen

    listening = listen("127.0.0.1", 0)
    print(listening.getsockname()[1], flush=True)
    app = create_app(Session(opened(name)))
    uvicorn.Server(uvicorn.Config(app, log_level="error")).run(sockets=[listening])


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((320, 240)).save(file, "JPEG")
    return file.getvalue()


def client(number: int, base: str, until: float, took: dict[str, list[float]], answers: Counter[str]) -> None:
    chance = random.Random(number)
    with httpx.Client(base_url=base, timeout=60) as at:
        held = ""
        turn = 0
        while time.monotonic() < until:
            turn += 1
            kind = (
                "picture"
                if not held or turn % 6 == 0
                else chance.choice(["explain", "heads off", "map", "patch", "pairs"])
            )
            asked = {"picture": held, "texts": chance.sample(TEXTS, 3)}
            began = time.perf_counter()
            if kind == "picture":
                answer = at.post("pictures", content=picture(number * 100_000 + turn))
                held = answer.json().get("id", held)
            elif kind == "map":
                answer = at.post("heatmap", json=asked)
            elif kind == "pairs":
                answer = at.post("pairs", json={"picture": held, "text": asked["texts"][0]})
            elif kind == "patch":
                answer = at.post("patch", json={**asked, "row": 1, "col": 2})
            else:
                parts = ",".join(f"{chance.randrange(4)}.{chance.randrange(4)}" for _ in range(3))
                answer = at.post("explain", json={**asked, "select": parts if kind == "heads off" else ""})
            answers[f"{kind} {answer.status_code}"] += 1
            if answer.status_code == 200:
                took[kind].append(time.perf_counter() - began)
            elif answer.status_code == 429:
                time.sleep(float(answer.headers["Retry-After"]))


@contextmanager
def serving(name: str) -> Generator[tuple[str, int]]:
    """Start a studio in a process of its own: address and process."""
    command = [sys.executable, __file__, "--serve", "--model", name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        base = f"http://127.0.0.1:{int(server.stdout.readline())}/"
        with httpx.Client(base_url=base, timeout=120, transport=httpx.HTTPTransport(retries=5)) as at:
            at.get("api/v1/model")
        yield base, server.pid
        server.terminate()


def told(what: str, times: list[float]) -> dict[str, float]:
    low, high = statistics.median(times), sorted(times)[int(0.95 * len(times))]
    print(f"{what:22} {len(times):6} answered   median {low * 1e3:7.0f} ms   95 % {high * 1e3:7.0f} ms")
    return {"median_ms": low * 1e3, "p95_ms": high * 1e3}


def load(name: str, clients: int, seconds: float) -> dict[str, object]:
    with serving(name) as (base, process):
        took: dict[str, list[float]] = {
            kind: [] for kind in ("picture", "explain", "heads off", "map", "patch", "pairs")
        }
        answers: Counter[str] = Counter()
        until = time.monotonic() + seconds
        threads = [
            threading.Thread(target=client, args=(n, base + "api/v1/", until, took, answers)) for n in range(clients)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        peak = max(int(line.split()[1]) for line in lines if "VmHWM" in line)
    rows = {kind: told(kind, times) for kind, times in took.items() if times}
    print(f"answers: {dict(answers)}; {sum(answers.values()) / seconds:.0f} a second; peak memory {peak / 1e6:.2f} GB")
    return {
        "model": name, "clients": clients, "seconds": seconds, "answers": dict(answers), "peak_gb": peak / 1e6, **rows
    }  # fmt: skip


def live(name: str) -> dict[str, object]:
    """One person, after a picture was encoded: a head goes off, and answer and map move."""
    chance, rows = random.Random(0), {}
    with serving(name) as (base, _), httpx.Client(base_url=base + "api/v1/", timeout=60) as at:
        asked = {"picture": at.post("pictures", content=picture(0)).json()["id"], "texts": TEXTS}
        facts = at.get("model").json()
        every = [f"{layer}.{head}" for layer in range(facts["layers"]) for head in range(facts["heads"])]
        for what, effect in (("first answer", "direct"), ("head off", "direct"), ("head off, run again", "rerun")):
            times = []
            for _ in range(1 if what == "first answer" else 20):
                off = chance.sample(every, 3)
                began = time.perf_counter()
                at.post("explain", json={**asked, "select": ",".join(off), "effect": effect}).raise_for_status()
                if effect == "direct":
                    on = ",".join(part for part in every if part not in off)
                    at.post("heatmap", json={**asked, "heads": on}).raise_for_status()
                times.append(time.perf_counter() - began)
            rows[what] = told(what, times)
        times = []
        for text in TEXTS:
            began = time.perf_counter()
            at.post("pairs", json={"picture": asked["picture"], "text": text}).raise_for_status()
            times.append(time.perf_counter() - began)
        print(f"words and patches: first text {times[0]:.2f} s, others {statistics.median(times[1:]):.3f} s")
    return rows


def opened_in_a_browser(name: str) -> dict[str, float] | None:
    """Load the page: its weight, and how long until the first answer and map stand there."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        print("no Chromium on this machine: the page is not opened")
        return None
    weight = [0]
    with serving(name) as (base, _), sync_playwright() as play:
        page = play.chromium.launch(executable_path=path, args=["--no-sandbox"]).new_page()
        page.on("response", lambda answer: weight.append(len(answer.body()) if "/static/" in answer.url else 0))
        began = time.perf_counter()
        page.goto(base)
        page.set_input_files("#files", {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": picture(0)})
        page.wait_for_selector(".answer .num")
        page.wait_for_function("document.getElementById('shown').textContent")
        seconds = time.perf_counter() - began
    print(f"page: {sum(weight) / 1e3:.0f} kB of scripts and styles; first answer and map after {seconds:.2f} s")
    return {"kb": sum(weight) / 1e3, "first_result_s": seconds}


def together(name: str, pictures: int) -> dict[str, object]:
    """What encoding together saves, and the most that it could: the bare forward of eight against one."""
    clip, rates = opened(name), {}
    pixels = [clip.pixels(Image.open(io.BytesIO(picture(n)))) for n in range(pictures)]
    for most in (1, 8):
        batches = [torch.cat(pixels[at : at + most]) for at in range(0, len(pixels), most)]
        clip.encode_image(batches[0])
        began = time.perf_counter()
        for batch in batches:
            clip.encode_image(batch)
        rates[f"forward of {most}"] = pictures / (time.perf_counter() - began)
        encoder.MOST = most
        session = Session(clip)
        threads = [threading.Thread(target=session.encoder.split, args=(one,)) for one in pixels]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        rates[f"studio, up to {most}"] = pictures / (time.perf_counter() - began)
    print(f"{name}, pictures a second: " + ", ".join(f"{what} {rate:.2f}" for what, rate in rates.items()))
    forward, studio = (rates[f"{what}8"] / rates[f"{what}1"] for what in ("forward of ", "studio, up to "))
    print(f"together / one by one: the studio {studio:.2f} ×, the bare forward {forward:.2f} × (the ceiling)")
    return {"model": name, **rates}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo", help="demo, or an architecture of open_clip with random weights")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--pictures", type=int, default=32)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.model)
        return
    torch.set_num_threads(os.cpu_count() or 1)
    print(f"load of the machine before: {os.getloadavg()[0]:.1f}, {torch.get_num_threads()} threads")
    rows = [together(given.model, given.pictures), live(given.model), opened_in_a_browser(given.model)]
    rows.append(load(given.model, given.clients, given.seconds))
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
