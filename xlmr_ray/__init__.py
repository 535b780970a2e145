"""XLM-RoBERTa as a production system: the model in plain torch, and a batch pipeline on Ray made of the same parts."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xlmr_ray.batch.ledger.results import read_results, result_files
    from xlmr_ray.checkpoint.quantization import BitsAndBytesConfig
    from xlmr_ray.config import XLMRobertaConfig
    from xlmr_ray.engine.pipeline import pipeline
    from xlmr_ray.errors import JobFailed, UserError
    from xlmr_ray.model.generation.cache import DynamicCache
    from xlmr_ray.model.generation.config import GenerationConfig
    from xlmr_ray.modeling.xlm_roberta import (
        XLMRobertaForCausalLM,
        XLMRobertaForMaskedLM,
        XLMRobertaForMultipleChoice,
        XLMRobertaForQuestionAnswering,
        XLMRobertaForSequenceClassification,
        XLMRobertaForTokenClassification,
        XLMRobertaModel,
        XLMRobertaPreTrainedModel,
    )
    from xlmr_ray.tokenizer.tokenizer import XLMRobertaTokenizer, XLMRobertaTokenizerFast

__version__ = "0.1.0"

# Looked up on first use: importing torch takes seconds, and neither the writers of a job nor `xlmr-ray --help` need it.
WHERE = {
    "BitsAndBytesConfig": "checkpoint.quantization",
    "DynamicCache": "model.generation.cache",
    "GenerationConfig": "model.generation.config",
    "JobFailed": "errors",
    "UserError": "errors",
    "XLMRobertaConfig": "config",
    "XLMRobertaForCausalLM": "modeling.xlm_roberta",
    "XLMRobertaForMaskedLM": "modeling.xlm_roberta",
    "XLMRobertaForMultipleChoice": "modeling.xlm_roberta",
    "XLMRobertaForQuestionAnswering": "modeling.xlm_roberta",
    "XLMRobertaForSequenceClassification": "modeling.xlm_roberta",
    "XLMRobertaForTokenClassification": "modeling.xlm_roberta",
    "XLMRobertaModel": "modeling.xlm_roberta",
    "XLMRobertaPreTrainedModel": "modeling.xlm_roberta",
    "XLMRobertaTokenizer": "tokenizer.tokenizer",
    "XLMRobertaTokenizerFast": "tokenizer.tokenizer",
    "pipeline": "engine.pipeline",
    "read_results": "batch.ledger.results",
    "result_files": "batch.ledger.results",
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
    "XLMRobertaPreTrainedModel",
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
