"""XLM-RoBERTa as a production system: the model in plain torch, and a batch pipeline on Ray made of the same parts."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xlmr_ray.batch.results import read_results, result_files
    from xlmr_ray.checkpoint.quantization import BitsAndBytesConfig
    from xlmr_ray.config import XLMRobertaConfig
    from xlmr_ray.engine.pipeline import pipeline
    from xlmr_ray.errors import JobFailed, UserError
    from xlmr_ray.model.cache import DynamicCache
    from xlmr_ray.model.generation_config import GenerationConfig
    from xlmr_ray.modeling import (
        XLMRobertaForCausalLM,
        XLMRobertaForMaskedLM,
        XLMRobertaForMultipleChoice,
        XLMRobertaForQuestionAnswering,
        XLMRobertaForSequenceClassification,
        XLMRobertaForTokenClassification,
        XLMRobertaModel,
    )
    from xlmr_ray.tokenizer import XLMRobertaTokenizer, XLMRobertaTokenizerFast

__version__ = "0.1.0"

# Looked up on first use: importing torch takes seconds, and neither the writers of a job nor `xlmr-ray --help` need it.
WHERE = {
    "BitsAndBytesConfig": "checkpoint.quantization",
    "DynamicCache": "model.cache",
    "GenerationConfig": "model.generation_config",
    "JobFailed": "errors",
    "UserError": "errors",
    "XLMRobertaConfig": "config",
    "XLMRobertaForCausalLM": "modeling",
    "XLMRobertaForMaskedLM": "modeling",
    "XLMRobertaForMultipleChoice": "modeling",
    "XLMRobertaForQuestionAnswering": "modeling",
    "XLMRobertaForSequenceClassification": "modeling",
    "XLMRobertaForTokenClassification": "modeling",
    "XLMRobertaModel": "modeling",
    "XLMRobertaTokenizer": "tokenizer",
    "XLMRobertaTokenizerFast": "tokenizer",
    "pipeline": "engine.pipeline",
    "read_results": "batch.results",
    "result_files": "batch.results",
}
__all__ = [
    "BitsAndBytesConfig",
    "DynamicCache",
    "GenerationConfig",
    "JobFailed",
    "UserError",
    "XLMRobertaConfig",
    "XLMRobertaForCausalLM",
    "XLMRobertaForMaskedLM",
    "XLMRobertaForMultipleChoice",
    "XLMRobertaForQuestionAnswering",
    "XLMRobertaForSequenceClassification",
    "XLMRobertaForTokenClassification",
    "XLMRobertaModel",
    "XLMRobertaTokenizer",
    "XLMRobertaTokenizerFast",
    "pipeline",
    "read_results",
    "result_files",
]


def __getattr__(name: str) -> Any:
    if name not in WHERE:
        raise AttributeError(f"module 'xlmr_ray' has no attribute {name!r}")
    return getattr(import_module(f"xlmr_ray.{WHERE[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
