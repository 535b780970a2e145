"""What a sentence-transformers folder says of a task's inputs: small letters or not, and how long a text may be."""

from xlmr_ray.checkpoint.sentence import SentenceConfig
from xlmr_ray.checkpoint.token_heads import MultiVectorModules
from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.tasks.encoded import length_limit
from xlmr_ray.tokenizer.tokenizer import XLMRobertaTokenizer


def sentence_tokenizer(
    folder: SentenceConfig | MultiVectorModules | None, tokenizer: XLMRobertaTokenizer
) -> XLMRobertaTokenizer:
    """The tokenizer as the folder uses it: on texts in small letters, or as it is."""
    return tokenizer.lowercased if folder is not None and folder.do_lower_case else tokenizer


def sentence_limit(
    task: str,
    asked: int | None,
    folder: SentenceConfig | MultiVectorModules | None,
    config: XLMRobertaConfig,
    tokenizer: XLMRobertaTokenizer,
) -> int:
    """The most tokens of a sequence: as asked, as the folder says, or what model and tokenizer allow. Raises
    UserError for more than the model has.
    """
    if asked is None and folder is not None and folder.max_seq_length is not None:
        asked = min(folder.max_seq_length, config.max_length)
    return length_limit(task, asked, config.max_length, tokenizer)
