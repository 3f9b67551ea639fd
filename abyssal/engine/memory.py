"""Where a cache lies and how large it may be: where nobody says, half of what is free now."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from abyssal.config import ModelConfig
from abyssal.engine.cache import PagedCache
from abyssal.engine.options import EngineOptions
from abyssal.engine.pages import PAGE
from abyssal.errors import ConfigError
from abyssal.kernels.stack import Stack

if TYPE_CHECKING:  # waits until it is asked for
    from abyssal.model.transformer import DeepSeekV3

_SHARE = 0.5
_CGROUP = Path("/sys/fs/cgroup")


class CachePlace(NamedTuple):
    """Where a cache is and what it is made of."""

    config: ModelConfig
    dtype: torch.dtype
    device: torch.device
    num_layers: int  # those of the model, and the MTP module's where it drafts

    @classmethod
    def of(cls, model: "DeepSeekV3 | Stack", options: EngineOptions) -> "CachePlace":
        """As a model's weights and the options say."""
        if isinstance(model, Stack):
            dtype, device = model.embed_dtype, torch.device("cpu")
        else:
            dtype, device = model.embed_tokens.weight.dtype, model.lm_head.weight.device
        if options.cache_dtype is not None:
            dtype = {"bfloat16": torch.bfloat16, "int8": torch.int8}[options.cache_dtype]
        num_layers = model.config.num_hidden_layers + bool(options.draft)
        return cls(model.config, dtype, device, num_layers)

    def cache(self, num_pages: int, *, fixed: bool) -> PagedCache:
        """The cache itself."""
        config, dtype, device, num_layers = self
        return PagedCache(config, num_pages, dtype, device, num_layers=num_layers, fixed=fixed)

    def num_pages(self, options: EngineOptions) -> int:
        """Pages of the cache, the scratch page included: what the budget holds, or all of use."""
        config = self.config
        page_bytes = PagedCache.bytes_per_page(config, self.num_layers, self.dtype)
        of_use = options.max_running * -(-(config.max_position_embeddings + options.draft) // PAGE)
        if options.cache_bytes is None:
            return 1 + max(min(cache_budget(self.device) // page_bytes, of_use), 1)
        if options.cache_bytes < 2 * page_bytes:
            raise ConfigError(
                f"cache_bytes={options.cache_bytes}, expected at least {2 * page_bytes}, two pages "
                f"of {PAGE} tokens; give the cache more memory"
            )
        return options.cache_bytes // page_bytes


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
