"""Accelerators: what one computes, holds and sends in a second. A figure nobody states is None.

Peaks are dense (without sparsity) and links are bytes a second that one device sends, half of what
data sheets add up over both directions. ``this`` is the machine the command runs on, measured by
`abyssal.train.rates`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from abyssal.errors import ConfigError
from abyssal.plan.measured import Measured

PRECISIONS = ("bfloat16", "float32", "fp8")
Cpu = Literal["amx", "vector"]  # the unit that multiplies BF16


@dataclass(frozen=True, kw_only=True, slots=True)
class Accelerator:
    """One kind of device, in nodes of some."""

    name: str
    peak_flops: Mapping[str, float | None]  # a second, by precision
    memory_bytes: float
    bandwidth: float  # bytes a second from its memory
    devices_per_node: int = 8
    intra_node: float | None = None  # bytes a second to devices of its node
    inter_node: float | None = None  # ... to devices of other nodes
    dollars_per_hour: float | None = None
    cpu: Cpu | None = None  # None: a GPU
    measured: Mapping[str, Measured] | None = None  # by precision, where nothing is stated

    def peak(self, precision: str) -> float:
        """FLOP/s in a precision.

        Raises:
            ConfigError: it has no such arithmetic, or none that anybody states.
        """
        found = self.peak_flops.get(precision)
        if found is None:
            able = ", ".join(p for p in PRECISIONS if self.peak_flops.get(p))
            raise ConfigError(
                f"{self.name} has no {precision} arithmetic; set the precision to one of {able}"
            )
        return found

    def of(self, precision: str) -> Measured:
        """What was measured in a precision.

        Raises:
            ConfigError: that was not, or nothing was.
        """
        known = self.measured or {}
        if precision not in known:
            raise ConfigError(
                f"{self.name} was not measured in {precision}; take one of "
                f"{', '.join(known) or 'the stated peaks'}"
            )
        return known[precision]


def _gpu(bf16: float, fp8: float | None, fp32: float) -> dict[str, float | None]:
    return {"bfloat16": bf16 * 1e12, "fp8": fp8 and fp8 * 1e12, "float32": fp32 * 1e12}


ACCELERATORS: dict[str, Accelerator] = {
    # H100 SXM with NVLink cut to 400 GB/s both ways, 160 each way in practice, and 50 GB/s of
    # InfiniBand: arXiv 2412.19437, section 3.2.2, and 2505.09343, section 4.2; $2: the former's
    # table 1.
    "H800": Accelerator(
        name="H800", peak_flops=_gpu(989.4, 1978.9, 66.9), memory_bytes=80e9, bandwidth=3.35e12,
        intra_node=160e9, inter_node=50e9, dollars_per_hour=2.0,
    ),
    # NVIDIA H100 data sheet (SXM5), its sparse figures halved; eight 400 Gb/s ports: DGX H100.
    "H100": Accelerator(
        name="H100", peak_flops=_gpu(989.4, 1978.9, 66.9), memory_bytes=80e9, bandwidth=3.35e12,
        intra_node=450e9, inter_node=50e9,
    ),
    # NVIDIA H200 data sheet (SXM): the same with more memory; DGX H200's ports.
    "H200": Accelerator(
        name="H200", peak_flops=_gpu(989.4, 1978.9, 66.9), memory_bytes=141e9, bandwidth=4.8e12,
        intra_node=450e9, inter_node=50e9,
    ),
    # As reported when it was announced: 148 TFLOP/s in BF16, 296 in FP8, 44 in FP32, 96 GB at 4.0
    # TB/s, NVLink 900 GB/s. What joins nodes is the server's, so not stated.
    "H20": Accelerator(
        name="H20", peak_flops=_gpu(148, 296, 44), memory_bytes=96e9, bandwidth=4.0e12,
        intra_node=450e9,
    ),
    # NVIDIA A100 data sheet (SXM4 80GB): no FP8; eight 200 Gb/s ports: DGX A100.
    "A100": Accelerator(
        name="A100", peak_flops=_gpu(312, None, 19.5), memory_bytes=80e9, bandwidth=2.039e12,
        intra_node=300e9, inter_node=25e9,
    ),
    # NVIDIA HGX B200 data sheet: 180 GB at 7.7 TB/s, 4.5 PFLOP/s in FP8 and 2.25 in BF16, FP32 75;
    # NVLink 1.8 TB/s; DGX B200: eight 400 Gb/s ports.
    "B200": Accelerator(
        name="B200", peak_flops=_gpu(2250, 4500, 75), memory_bytes=180e9, bandwidth=7.7e12,
        intra_node=900e9, inter_node=50e9,
    ),
}  # fmt: skip


def accelerator(name: str) -> Accelerator:
    """One of the table, in any case of letters.

    Raises:
        ConfigError: it is not in the table.
    """
    found = ACCELERATORS.get(name.upper())
    if found is None:
        raise ConfigError(
            f"hardware {name!r} is not known; expected one of {', '.join(ACCELERATORS)}, or `this` "
            "for the machine the command runs on"
        )
    return found
