"""How a model is to be computed: what job files, a service's settings and `pipeline()` say, and engines take."""

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineSettings:
    """`dtype="auto"` is float32 on a CPU, and on a GPU bfloat16, or float16 before compute capability 8.0, whatever the
    files hold. `device="auto"` is a GPU where there is one. `max_tokens`: of a batch, "auto" by the device.

    `quantization` is the encoder's matmuls in eight bits, for speed, `int8` on a CPU and `fp8` on a GPU; or `nf4`,
    `fp4` or `int8-weights`, its weights in fewer bits and matmuls in floating point, for memory and not for speed.

    `compile`, on a GPU: see `Encoder.compile_layers`; it takes a minute, and changes answers by rounding. On a CPU it
    is left out with a warning: e5 went at 0.6 of the rate (AVX-512, two threads).
    """

    dtype: str = "auto"
    device: str = "auto"
    attn_implementation: str = "auto"
    max_tokens: int | str = "auto"
    quantization: str | None = None
    compile: bool = False


AUTO = EngineSettings()
