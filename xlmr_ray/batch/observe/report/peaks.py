"""What a device can do at most: dense floating point operations a second in 16 bits, by its makers' data sheets."""

# By what the name holds, the first that fits. In 32 bits a device does less, so utilization is that of its fast path.
PEAKS = (
    ("B200", 2250e12),
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("L40S", 362e12),
    ("L4", 121e12),
    ("A10G", 70e12),
    ("A10", 125e12),
    ("T4", 65e12),
)


def peak(device: str) -> float | None:
    """Operations a second of the device so named, None where its data sheet is not known here, as of processors."""
    return next((peak for part, peak in PEAKS if part in device), None) if "(CPU)" not in device else None
