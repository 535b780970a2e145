"""The keys of `engine:` that job files and a service's settings have in common."""

from typing import Literal

from xlmr_ray.engine.settings import EngineSettings
from xlmr_ray.validation import Auto, Count, Section


class EngineKeys(Section):
    """`pre_tokenizer` is that of `XLMRobertaTokenizer.from_pretrained`; the others are those of `EngineSettings`."""

    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    attn_implementation: str = "auto"
    max_tokens: Auto | Count = "auto"
    pre_tokenizer: Literal["xlm-roberta", "file"] | None = None
    quantization: Literal["int8", "fp8", "nf4", "fp4", "int8-weights"] | None = None
    compile: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @property
    def settings(self) -> EngineSettings:
        return EngineSettings(
            dtype=self.dtype,
            device=self.device,
            attn_implementation=self.attn_implementation,
            max_tokens=self.max_tokens,
            quantization=self.quantization,
            compile=self.compile,
        )
