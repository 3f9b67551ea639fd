"""What training asks of the machine."""

import platform
import resource

import pytest
import torch

from abyssal.train.machine import keep_memory

PAGES = 1 << 14  # of 4 KiB: more than malloc holds on to by itself


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left alone")
def test_memory_that_a_step_frees_serves_the_next_without_page_faults():
    keep_memory()
    faults = []
    for _ in range(6):  # what other tests have freed may be cut up at first
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.zeros(PAGES, 1024)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    assert min(faults) < PAGES / 16
