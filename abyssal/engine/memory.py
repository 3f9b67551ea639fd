"""How much memory a cache may take where nobody says: half of what is free now."""

import os
from pathlib import Path

import torch

_SHARE = 0.5
_CGROUP = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device) -> int:
    """Memory that can be taken on a device without pushing anything out.

    On a CPU it is what Linux calls available, within the limit of the process's control group;
    where neither is told, the size of the machine's memory.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = [_available_bytes(), _group_bytes()]
    return min(amount for amount in free if amount is not None)


def cache_budget(device: torch.device) -> int:
    """Bytes for a cache on this device, when the user names none."""
    return int(free_bytes(device) * _SHARE)


def _available_bytes() -> int:
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _group_bytes() -> int | None:
    """What the control group (version 2) still allows; None without a limit."""
    limit, used = _CGROUP / "memory.max", _CGROUP / "memory.current"
    if not limit.exists() or limit.read_text().strip() == "max":
        return None
    return int(limit.read_text()) - int(used.read_text())
