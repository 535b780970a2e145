"""XLM-RoBERTa as a production system: the model in plain torch, and a batch pipeline on Ray made of the same parts."""

from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.engine.pipeline import pipeline
from xlmr_ray.errors import JobFailed, UserError
from xlmr_ray.modeling import XLMRobertaForMaskedLM, XLMRobertaForSequenceClassification, XLMRobertaModel
from xlmr_ray.tokenizer import XLMRobertaTokenizer

__version__ = "0.1.0"

__all__ = [
    "JobFailed",
    "UserError",
    "XLMRobertaConfig",
    "XLMRobertaForMaskedLM",
    "XLMRobertaForSequenceClassification",
    "XLMRobertaModel",
    "XLMRobertaTokenizer",
    "pipeline",
]
