"""What is known of GPUs: the rate of their makers' data sheets, and what was measured of it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """`name`: a part of the device's name. `peak`: dense operations a second in 16 bits by the data sheet; in 32 bits
    it does less. `measured`: those of a bfloat16 matmul of 8192^3 on one of them. `cores`: CPU cores that usually come
    with each; None for a variant that is not planned with by name.
    """

    name: str
    peak: float
    cores: int | None = None
    measured: float | None = None


# The first whose name fits.
GPUS = (
    Gpu("H100 PCIe", 756e12),
    Gpu("H100 NVL", 835e12),
    Gpu("H100", 989e12, 16, 798e12),
    Gpu("H200", 989e12, 16, 790e12),
    Gpu("B200", 2250e12),
    Gpu("A100", 312e12, 12),
    Gpu("L40S", 362e12, 8),
    Gpu("L4", 121e12, 8),
    Gpu("A10G", 70e12, 8),
    Gpu("A10", 125e12),
    Gpu("T4", 65e12, 8),
)


def peak(device: str) -> float | None:
    """Operations a second of the device so named, None where its data sheet is not known here, as of processors."""
    return next((one.peak for one in GPUS if one.name in device), None) if "(CPU)" not in device else None
