"""Hardware that can be planned for without a measurement on it."""

from dataclasses import dataclass

from xlmr_ray.engine.gpus import GPUS
from xlmr_ray.errors import UserError

# The share of a GPU's matrix rate that the engine is taken to reach where nobody has measured it: 57 and 62 % were
# published for BERT base and large (TensorRT's demo, A100, float16). Half is meant to be kept.
UTILIZATION = 0.5


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """`matrix`: operations a second of dense matmuls in 16 bits; `measured`: on one of them, else a data sheet's.
    `cores`: CPU cores that usually come with each.
    """

    name: str
    matrix: float
    measured: bool
    cores: int
    source: str


HARDWARE = tuple(
    Hardware(
        name=one.name.lower(),
        matrix=one.measured or one.peak,
        measured=one.measured is not None,
        cores=one.cores,
        source="bfloat16 matmul of 8192^3, measured on one" if one.measured else "NVIDIA's data sheet, dense, 16 bits",
    )
    for one in GPUS
    if one.cores is not None
)


def hardware(name: str) -> Hardware:
    """Raises UserError for one that is not known."""
    for one in HARDWARE:
        if one.name == name.lower():
            return one
    known = ", ".join(one.name for one in HARDWARE)
    raise UserError(f"hardware {name!r} is none of {known}; for any other, measure on it: xlmr-ray bench")
