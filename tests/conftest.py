"""Shape checks for the whole package, and the fixtures everyone uses."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
from hypothesis import settings

# Property tests draw the same examples on every run, so that main is green or red for what a commit changed;
# HYPOTHESIS_PROFILE=random draws new ones (docs/decisions.md).
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("random", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

# Caches of text embeddings stay out of the user's own folder.
os.environ.setdefault("CLIP_ANATOMY_CACHE", tempfile.mkdtemp(prefix="clip-anatomy-tests-"))

# Every `Float[Tensor, "image layer ..."]` of the package is checked at each call while tests run, and costs nothing otherwise.
# Functions and classes that name no shape are left as they are: checking those too took two fifths of the suite's time, and
# basedpyright does it without running them.
checked = jaxtyping.jaxtyped


def shapes_checked(*, typechecker: Any) -> Any:
    def decorate(one: Any) -> Any:
        named = repr(getattr(one, "__annotations__", {}))
        return checked(one, typechecker=typechecker) if "jaxtyping" in named or "[Tensor, " in named else one

    return decorate


jaxtyping.jaxtyped = shapes_checked
jaxtyping.install_import_hook("clip_anatomy", "beartype.beartype")

import torch  # noqa: E402

# One process has both cores, two processes have one each.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The workplace's shared folder beside the project; tests that need it skip without it."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"no shared folder beside the project ({folder.name}/): oracles and photographs are not here")
    return folder


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For files full of small tensors: two threads that wait for each other are slower than one, on a busy machine ten times."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real Chromium, started once for a file; tests that need it skip without it."""
    playwright = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium on this machine. Type: apt-get install chromium")
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()
