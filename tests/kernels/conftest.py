"""For all kernels: native twins where a test is about them, as many threads as it asks for."""

import pytest
import torch

from abyssal.kernels import registry


@pytest.fixture
def threads():
    """threads(n) sets torch's number of threads until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def twins():
    """Skip where native kernels are off."""
    if registry.native("rms_norm") is None:
        pytest.skip("native kernels are off")
