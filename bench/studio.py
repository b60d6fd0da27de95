"""The studio under load: many clients that send pictures, ask texts and switch heads at once; and what encoding together saves.

python bench/studio.py                        # 32 clients for 30 s on the bundled model
python bench/studio.py --model ViT-B-16 --seconds 120
"""

import argparse
import io
import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
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
    import socket

    import uvicorn

    from clip_anatomy.studio.server import create_app

    listening = socket.create_server(("127.0.0.1", 0))
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
            kind = "picture" if not held or turn % 6 == 0 else chance.choice(["explain", "heads off", "map", "patch"])
            asked = {"picture": held, "texts": chance.sample(TEXTS, 3)}
            began = time.perf_counter()
            if kind == "picture":
                answer = at.post("pictures", content=picture(number * 100_000 + turn))
                held = answer.json().get("id", held)
            elif kind == "map":
                answer = at.post("heatmap", json=asked)
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


def load(name: str, clients: int, seconds: float) -> dict[str, object]:
    command = [sys.executable, __file__, "--serve", "--model", name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        base = f"http://127.0.0.1:{int(server.stdout.readline())}/api/v1/"
        with httpx.Client(base_url=base, timeout=120, transport=httpx.HTTPTransport(retries=5)) as at:
            at.get("model")
        took: dict[str, list[float]] = {kind: [] for kind in ("picture", "explain", "heads off", "map", "patch")}
        answers: Counter[str] = Counter()
        until = time.monotonic() + seconds
        threads = [threading.Thread(target=client, args=(n, base, until, took, answers)) for n in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        peak = max(
            int(line.split()[1])
            for line in Path(f"/proc/{server.pid}/status").read_text().splitlines()
            if "VmHWM" in line
        )
        server.terminate()
    for kind, times in took.items():
        if times:
            low, high = statistics.median(times), sorted(times)[int(0.95 * len(times))]
            print(f"{kind:10} {len(times):6} answered   median {low * 1e3:7.0f} ms   95 % {high * 1e3:7.0f} ms")
    print(f"answers: {dict(answers)}; {sum(answers.values()) / seconds:.0f} a second; peak memory {peak / 1e6:.2f} GB")
    return {"model": name, "clients": clients, "seconds": seconds, "answers": dict(answers), "peak_gb": peak / 1e6}


def together(name: str, pictures: int) -> dict[str, object]:
    clip, rates = opened(name), {}
    for most in (1, 8):
        encoder.MOST = most
        session = Session(clip)
        pixels = [clip.pixels(Image.open(io.BytesIO(picture(n)))) for n in range(pictures)]
        threads = [threading.Thread(target=session.encoder.split, args=(one,)) for one in pixels]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        rates[most] = pictures / (time.perf_counter() - began)
    print(
        f"{name}: {rates[1]:.2f} pictures a second one by one, {rates[8]:.2f} up to eight together: {rates[8] / rates[1]:.2f} ×"
    )
    return {"model": name, "one_by_one": rates[1], "together": rates[8]}


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
    rows = [load(given.model, given.clients, given.seconds), together(given.model, given.pictures)]
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
