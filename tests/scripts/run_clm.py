"""Trains a causal language model on blocks of text, evaluates it and saves, with the calls of run_clm.py."""

import json
import math
import sys
from itertools import chain
from pathlib import Path

from transformers import Trainer, default_data_collator, set_seed

from tests.scripts.arguments import two_steps
from xlmr_ray import XLMRobertaConfig, XLMRobertaForCausalLM, XLMRobertaTokenizer

path, out = sys.argv[1:]
set_seed(42)
loading = {"cache_dir": None, "revision": "main", "token": None, "trust_remote_code": False}
config = XLMRobertaConfig.from_pretrained(path, is_decoder=True, **loading)
config.update_from_string("hidden_dropout_prob=0.0,attention_probs_dropout_prob=0.0")
tokenizer = XLMRobertaTokenizer.from_pretrained(path, use_fast=True, **loading)
model = XLMRobertaForCausalLM.from_pretrained(path, from_tf=False, config=config, dtype=None, **loading)
n_params = sum({p.data_ptr(): p.numel() for p in model.parameters()}.values())
texts = [
    "All human beings are born free and equal in dignity and rights",
    "Tous les êtres humains naissent libres",
] * 12
tokenized = tokenizer(texts)
joined = {k: list(chain(*tokenized[k])) for k in tokenized}
block_size = min(16, tokenizer.model_max_length)
total_length = (len(joined["input_ids"]) // block_size) * block_size
result = {k: [t[i : i + block_size] for i in range(0, total_length, block_size)] for k, t in joined.items()}
result["labels"] = result["input_ids"].copy()
dataset = [{key: result[key][i] for key in result} for i in range(len(result["labels"]))]

trainer = Trainer(
    model=model,
    args=two_steps(out, gradient_accumulation_steps=2),
    train_dataset=dataset,
    eval_dataset=dataset,
    processing_class=tokenizer,
    data_collator=default_data_collator,
)
train_result = trainer.train()
trainer.save_model()
metrics = trainer.evaluate()

again = XLMRobertaForCausalLM.from_pretrained(out)
batch = tokenizer(texts[:1], return_tensors="pt")
results = {
    "parameters": n_params,
    "train_loss": train_result.training_loss,
    "eval": metrics["eval_loss"],
    "perplexity": math.exp(metrics["eval_loss"]),
    "reloaded": again(**batch).logits[..., ::97].tolist(),
    "generated": again.generate(**batch, max_new_tokens=4, do_sample=False).tolist(),
}
Path(out, "results.json").write_text(json.dumps(results))
