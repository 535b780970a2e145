"""Small checkpoints with the embedded tokenizer and random weights, saved by transformers."""

import json
from pathlib import Path

import torch
import transformers

import xlmr_ray

TOKENIZER = Path(xlmr_ray.__file__).parent / "assets" / "mini"


def make_config(**values: object) -> transformers.XLMRobertaConfig:
    size = len(transformers.PreTrainedTokenizerFast(tokenizer_file=str(TOKENIZER / "tokenizer.json")))
    shape = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    return transformers.XLMRobertaConfig(
        vocab_size=size, type_vocab_size=1, initializer_range=0.2, **{"max_position_embeddings": 66, **shape, **values}
    )


def add_tokenizer(folder: Path, max_length: int = 64) -> Path:
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(TOKENIZER, model_max_length=max_length)
    tokenizer.save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes((TOKENIZER / "tokenizer.json").read_bytes())
    return folder


def save_e5_layout(folder: Path) -> Path:
    """A sentence-transformers folder as multilingual-e5-small is published: BERT's layout, XLM-R's tokenizer, the mean
    of all tokens, normalized.
    """
    torch.manual_seed(11)
    shape = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    size = make_config().vocab_size
    config = transformers.BertConfig(vocab_size=size, max_position_embeddings=64, initializer_range=0.2, **shape)
    transformers.BertModel(config).save_pretrained(folder)
    add_tokenizer(folder)
    names = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{name}"}
        for place, (path, name) in enumerate(names.items())
    ]
    files = {
        "modules.json": modules,
        "sentence_bert_config.json": {"max_seq_length": 64, "do_lower_case": False},
        "1_Pooling/config.json": {"word_embedding_dimension": 48, "pooling_mode_mean_tokens": True},
    }
    (folder / "1_Pooling").mkdir()
    (folder / "2_Normalize").mkdir()
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def save_classifier(folder: Path, **values: object) -> Path:
    torch.manual_seed(7)
    model = transformers.XLMRobertaForSequenceClassification(make_config(**values))
    torch.nn.init.normal_(model.classifier.out_proj.bias)
    model.save_pretrained(folder)
    return add_tokenizer(folder)
