"""Trains a masked language model on blocks of text, evaluates it and saves, with the calls of run_mlm.py."""

import json
import math
import sys
from itertools import chain
from pathlib import Path

from transformers import DataCollatorForLanguageModeling, Trainer, set_seed

from tests.scripts.arguments import two_steps
from xlmr_ray import XLMRobertaConfig, XLMRobertaForMaskedLM, XLMRobertaTokenizer

path, out = sys.argv[1:]
set_seed(42)
loading = {"cache_dir": None, "revision": "main", "token": None, "trust_remote_code": False}
config = XLMRobertaConfig.from_pretrained(path, **loading)
tokenizer = XLMRobertaTokenizer.from_pretrained(path, use_fast=True, **loading)
tokenizer.add_tokens(["Menschenrecht"])
model = XLMRobertaForMaskedLM.from_pretrained(
    path, from_tf=False, config=config, dtype="auto", low_cpu_mem_usage=False, **loading
)
embedding_size = model.get_input_embeddings().weight.shape[0]
if len(tokenizer) > embedding_size:
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    # New rows are random: the same ones for both libraries.
    model.get_input_embeddings().weight.data[embedding_size:] = 0.01
max_seq_length = min(16, tokenizer.model_max_length)
texts = ["All human beings are born free and equal in dignity and rights", "Jedes Menschenrecht gilt"] * 12
tokenized = tokenizer(texts, return_special_tokens_mask=True)
joined = {k: list(chain(*tokenized[k])) for k in tokenized}
total_length = (len(joined["input_ids"]) // max_seq_length) * max_seq_length
blocks = {k: [t[i : i + max_seq_length] for i in range(0, total_length, max_seq_length)] for k, t in joined.items()}
dataset = [{key: blocks[key][i] for key in blocks} for i in range(len(blocks["input_ids"]))]


def preprocess_logits_for_metrics(logits, labels):
    return (logits[0] if isinstance(logits, tuple) else logits).argmax(dim=-1)


def compute_metrics(eval_preds):
    preds, labels = eval_preds
    kept = labels.reshape(-1) != -100
    return {"accuracy": float((preds.reshape(-1) == labels.reshape(-1))[kept].mean())}


trainer = Trainer(
    model=model,
    args=two_steps(out),
    train_dataset=dataset,
    eval_dataset=dataset,
    processing_class=tokenizer,
    data_collator=DataCollatorForLanguageModeling(tokenizer=tokenizer, mlm_probability=0.15, pad_to_multiple_of=None),
    compute_metrics=compute_metrics,
    preprocess_logits_for_metrics=preprocess_logits_for_metrics,
)
train_result = trainer.train()
trainer.save_model()
metrics = trainer.evaluate()

again = XLMRobertaForMaskedLM.from_pretrained(out)
assert XLMRobertaTokenizer.from_pretrained(out)(texts).input_ids == tokenizer(texts).input_ids
logits = again(**tokenizer(texts[:2], padding=True, return_tensors="pt")).logits
results = {
    "train_loss": train_result.training_loss,
    "eval": {key: metrics[key] for key in ("eval_loss", "eval_accuracy")},
    "perplexity": math.exp(metrics["eval_loss"]),
    "reloaded": logits[..., ::97].tolist(),
}
Path(out, "results.json").write_text(json.dumps(results))
