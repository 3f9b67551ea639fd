"""Triton's kernels, in its interpreter where there is no GPU: the definition's bytes and scales.

CI installs Triton; elsewhere these tests are skipped without it.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHECK = """
import torch
from abyssal import float8
from abyssal.kernels import fp8_triton as twin
from abyssal.kernels.fp8_product import reference
from abyssal.kernels.fp8_tiles import blocks, tiles

device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)
for rows, width in ((70, 160), (5, 300), (129, 96), (1, 1), (33, 128)):
    for dtype in (torch.float32, torch.bfloat16):
        for form in (float8.E4M3, float8.E5M2):
            x = torch.randn(rows, width) * torch.exp(5 * torch.randn(rows, width))
            x = torch.where(torch.rand(rows, width) < 0.05, 0.0, x).to(dtype)
            numbers, scale = float8.quantize(x, (1, 128), form)
            amax = twin.amax(x.to(device)).cpu()
            assert torch.equal(float8.scale_of(amax, form.largest), scale)
            found = twin.encode(x.to(device), scale.to(device), form).cpu()
            assert torch.equal(found.view(torch.uint8), numbers.view(torch.uint8))
            turned = twin.encode(x.T.to(device), twin_scale(x, form, device), form).cpu()
            expected, _ = float8.quantize(x.T, (1, 128), form)
            assert torch.equal(turned.view(torch.uint8), expected.view(torch.uint8))
for M, N, K in ((70, 40, 160), (3, 65, 96), (64, 64, 256), (1, 1, 1)):
    for b in (blocks(torch.randn(N, K)), tiles(torch.randn(N, K))):
        a = tiles(torch.randn(M, K), float8.E5M2 if N == 40 else float8.E4M3)
        parts = [t.to(device) for t in (a.numbers, a.scale, b.numbers, b.scale)]
        found = twin.product(parts[0], parts[1], a.rows, parts[2], parts[3], b.rows).cpu()
        exact = reference(a, b)
        # A GPU's own sums have fewer bits than float32's.
        torch.testing.assert_close(found, exact, atol=1e-3 * float(exact.abs().max()), rtol=0)
        if device == "cpu":
            torch.testing.assert_close(found, exact, atol=1e-6 * float(exact.abs().max()), rtol=0)
"""
HELPER = """
def twin_scale(x, form, device):
    return float8.scale_of(twin.amax(x.T.to(device)), form.largest)
"""


def test_tiles_and_products_are_the_definitions():
    if importlib.util.find_spec("triton") is None and not os.environ.get("CI"):
        pytest.skip("triton is not installed")
    import torch

    # In a process of its own: Triton reads the switch when it is imported, which others may have.
    interpret = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **interpret}
    command = [sys.executable, "-c", HELPER + CHECK]
    ran = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
