"""Fine-tunes a classifier of tokens, evaluates it and saves, with the calls of run_ner.py."""

import json
import sys
from pathlib import Path

import numpy as np
from transformers import (
    DataCollatorForTokenClassification,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Trainer,
    set_seed,
)

from tests.scripts.arguments import two_steps
from xlmr_ray import XLMRobertaConfig, XLMRobertaForTokenClassification, XLMRobertaTokenizer

path, out = sys.argv[1:]
set_seed(42)
loading = {"cache_dir": None, "revision": "main", "token": None, "trust_remote_code": False}
label_list = ["O", "B-PER", "I-PER"]
config = XLMRobertaConfig.from_pretrained(path, num_labels=len(label_list), finetuning_task="ner", **loading)
tokenizer = XLMRobertaTokenizer.from_pretrained(path, use_fast=True, add_prefix_space=True, **loading)
model = XLMRobertaForTokenClassification.from_pretrained(
    path, from_tf=False, config=config, ignore_mismatched_sizes=True, **loading
)
if not isinstance(tokenizer, PreTrainedTokenizerFast):
    raise ValueError("This example script only works for models that have a fast tokenizer.")
if model.config.label2id != PretrainedConfig(num_labels=len(label_list)).label2id:
    raise ValueError("labels of the checkpoint")
model.config.label2id = {label: i for i, label in enumerate(label_list)}
model.config.id2label = dict(enumerate(label_list))

examples = {
    "tokens": [["Eleanor", "Roosevelt", "was", "born"], ["human", "beings"], ["René", "Cassin", "schrieb"]] * 2,
    "ner_tags": [[1, 2, 0, 0], [0, 0], [1, 2, 0]] * 2,
}
tokenized = tokenizer(examples["tokens"], padding=False, truncation=True, max_length=64, is_split_into_words=True)
labels = []
for i, label in enumerate(examples["ner_tags"]):
    previous, label_ids = None, []
    for word_idx in tokenized.word_ids(batch_index=i):
        label_ids.append(-100 if word_idx is None or word_idx == previous else label[word_idx])
        previous = word_idx
    labels.append(label_ids)
tokenized["labels"] = labels
dataset = [{key: tokenized[key][i] for key in tokenized} for i in range(len(labels))]


def compute_metrics(p):
    predictions = np.argmax(p[0], axis=2)
    kept = p[1] != -100
    return {"accuracy": float((predictions == p[1])[kept].mean())}


trainer = Trainer(
    model=model,
    args=two_steps(out, per_device_train_batch_size=3),
    train_dataset=dataset,
    eval_dataset=dataset,
    processing_class=tokenizer,
    data_collator=DataCollatorForTokenClassification(tokenizer, pad_to_multiple_of=None),
    compute_metrics=compute_metrics,
)
train_result = trainer.train()
trainer.save_model()
metrics = trainer.evaluate()
predictions, _, _ = trainer.predict(dataset, metric_key_prefix="predict")

again = XLMRobertaForTokenClassification.from_pretrained(out)
assert [again.config.id2label[i] for i in range(3)] == label_list
logits = again(**tokenizer(["Eleanor Roosevelt", "human"], padding=True, return_tensors="pt")).logits
results = {
    "train_loss": train_result.training_loss,
    "eval": {key: metrics[key] for key in ("eval_loss", "eval_accuracy")},
    "predictions": predictions.tolist(),
    "reloaded": logits.tolist(),
}
Path(out, "results.json").write_text(json.dumps(results))
