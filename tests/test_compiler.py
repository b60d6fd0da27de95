"""torch's compiler: nothing brings it in, as it takes three seconds, and models that a program compiled are proven as well."""

import subprocess
import sys

import torch

from clip_anatomy.loading.double_precision import in_double


def test_opening_a_model_does_not_import_the_compiler() -> None:
    code = "import sys, clip_anatomy; clip_anatomy.load('demo'); print('torch._dynamo' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


def test_a_compiled_module_is_widened() -> None:
    layer = torch.nn.Linear(4, 4)
    module, x = torch.compile(layer, backend="eager"), torch.randn(2, 4)
    found = [in_double(module, x) for _ in range(2)]
    expected = layer.double()(x.double())
    assert all(torch.equal(one, expected) for one in found)
