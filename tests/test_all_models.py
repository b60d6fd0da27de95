"""All of open_clip's configurations: every one opens on the meta device, and real random instances prove themselves and sum."""

from typing import Any

import open_clip
import pytest
from modules import BENCH, module_at

LARGEST = 1e9  # parameters of a real instance: one at a time fits into 24 GB, in double precision too


@pytest.fixture(scope="module")
def bench() -> Any:
    """bench/models.py, which makes docs/models.md."""
    return module_at(BENCH / "models.py")


@pytest.mark.slow
@pytest.mark.parametrize("name", open_clip.list_models())
def test_a_configuration_opens_with_its_proof_and_sums(bench: Any, name: str) -> None:
    count, cells = bench.row(name)
    assert "refused" not in cells[2]
    if count <= LARGEST:
        with bench.offline():
            proof, residue, _ = bench.measured(open_clip.get_model_config(name), rounds=0)
        assert float(proof) < 1e-10
        assert float(residue) < 1e-5


@pytest.mark.parametrize(
    "name", ["ViT-B-16-SigLIP", "EVA02-B-16", "PE-Core-B-16", "convnext_large_d", "nllb-clip-base"]
)
def test_a_configuration_of_each_kind_is_read_on_the_meta_device(bench: Any, name: str) -> None:
    kinds = {
        "ViT-B-16-SigLIP": "every block, 12 × 12 heads; through an attention pool, whose MLP is a part",
        "EVA02-B-16": "every block, 12 × 12 heads",
        "PE-Core-B-16": "every block, 12 × 12 heads; through an attention pool, whose MLP is a part",
        "convnext_large_d": "one part, not split: an MLP stands behind its pooling",
        "nllb-clip-base": "every block, 12 × 12 heads",
    }
    _, cells = bench.row(name)
    assert cells[2] == kinds[name]
    assert cells[3].startswith("every block")
