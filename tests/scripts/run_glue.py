"""Fine-tunes a classifier of pairs of sentences, evaluates it, predicts and saves, with the calls of run_glue.py."""

import json
import sys
from pathlib import Path

import numpy as np
from transformers import DataCollatorWithPadding, EvalPrediction, Trainer, set_seed

from tests.scripts.arguments import two_steps
from xlmr_ray import XLMRobertaConfig, XLMRobertaForSequenceClassification, XLMRobertaTokenizer

path, out = sys.argv[1:]
set_seed(42)
loading = {"cache_dir": None, "revision": "main", "token": None, "trust_remote_code": False}
config = XLMRobertaConfig.from_pretrained(path, num_labels=2, finetuning_task="mrpc", **loading)
tokenizer = XLMRobertaTokenizer.from_pretrained(path, use_fast=True, **loading)
model = XLMRobertaForSequenceClassification.from_pretrained(
    path, from_tf=bool(".ckpt" in path), config=config, ignore_mismatched_sizes=False, **loading
)
label_to_id = {"not_equivalent": 0, "equivalent": 1}
model.config.label2id = label_to_id
model.config.id2label = {i: label for label, i in config.label2id.items()}

TEXTS = ["All human beings are born free", "Alle Menschen sind frei", "Tous les êtres humains", "equal in dignity"] * 2
examples = {"sentence1": TEXTS, "sentence2": TEXTS[::-1], "label": [0, 1, 1, 0] * 2}
max_seq_length = min(128, tokenizer.model_max_length)
result = tokenizer(
    examples["sentence1"], examples["sentence2"], padding=False, max_length=max_seq_length, truncation=True
)
result["label"] = examples["label"]
dataset = [{key: result[key][i] for key in result} for i in range(len(TEXTS))]


def compute_metrics(p: EvalPrediction) -> dict[str, float]:
    preds = p.predictions[0] if isinstance(p.predictions, tuple) else p.predictions
    return {"accuracy": float((np.argmax(preds, axis=1) == p.label_ids).mean())}


arguments = two_steps(out)
trainer = Trainer(
    model=model,
    args=arguments,
    train_dataset=dataset,
    eval_dataset=dataset,
    compute_metrics=compute_metrics,
    processing_class=tokenizer,
    data_collator=DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8),
)
train_result = trainer.train(resume_from_checkpoint=None)
trainer.save_model()
trainer.log_metrics("train", train_result.metrics)
trainer.save_state()
metrics = trainer.evaluate(eval_dataset=dataset)
trainer.save_metrics("eval", metrics)
predictions = trainer.predict(dataset, metric_key_prefix="predict").predictions
trainer.create_model_card(finetuned_from=path, tasks="text-classification")

again = XLMRobertaForSequenceClassification.from_pretrained(out)
assert again.config.label2id == {"not_equivalent": 0, "equivalent": 1} or again.config.num_labels == 2
logits = again(**tokenizer(TEXTS, TEXTS[::-1], padding=True, return_tensors="pt")).logits
results = {
    "train_loss": train_result.training_loss,
    "eval": {key: metrics[key] for key in ("eval_loss", "eval_accuracy")},
    "predictions": predictions.tolist(),
    "reloaded": logits.tolist(),
}
Path(out, "results.json").write_text(json.dumps(results))
