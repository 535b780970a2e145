"""Hardware that can be planned for without a measurement on it, and what is known of it."""

from dataclasses import dataclass

from xlmr_ray.errors import UserError

# The share of a GPU's matrix rate that the engine is taken to reach where nobody has measured it: 57 and 62 % were
# published for BERT base and large (TensorRT's demo, A100, float16). Half is meant to be kept.
UTILIZATION = 0.5


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """`matrix`: operations a second of dense products in 16 bits; `measured`: on one of them, else a data sheet's.
    `cores`: CPU cores that usually come with each.
    """

    name: str
    matrix: float
    measured: bool
    cores: int
    source: str


HARDWARE = (
    Hardware(
        name="h100",
        matrix=798e12,
        measured=True,
        cores=16,
        source="bfloat16 product of 8192^3, measured on an H100 80GB HBM3",
    ),
    Hardware(name="h200", matrix=790e12, measured=True, cores=16, source="bfloat16 product of 8192^3, measured on one"),
    Hardware(name="a100", matrix=312e12, measured=False, cores=12, source="NVIDIA's data sheet, dense bfloat16"),
    Hardware(name="l40s", matrix=362e12, measured=False, cores=8, source="NVIDIA's data sheet, dense bfloat16"),
    Hardware(name="a10g", matrix=70e12, measured=False, cores=8, source="the data sheet, dense bfloat16"),
    Hardware(name="l4", matrix=121e12, measured=False, cores=8, source="NVIDIA's data sheet, dense bfloat16"),
    Hardware(name="t4", matrix=65e12, measured=False, cores=8, source="NVIDIA's data sheet, float16"),
)


def hardware(name: str) -> Hardware:
    """Raises UserError for one that is not known."""
    for one in HARDWARE:
        if one.name == name.lower():
            return one
    known = ", ".join(one.name for one in HARDWARE)
    raise UserError(f"hardware {name!r} is none of {known}; for any other, measure on it: xlmr-ray bench")
