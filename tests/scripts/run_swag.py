"""Fine-tunes a chooser of endings, evaluates it and saves, with the calls of run_swag.py."""

import json
import sys
from itertools import chain
from pathlib import Path

import numpy as np
from transformers import DataCollatorForMultipleChoice, Trainer, set_seed

from tests.scripts.arguments import two_steps
from xlmr_ray import XLMRobertaConfig, XLMRobertaForMultipleChoice, XLMRobertaTokenizer

path, out = sys.argv[1:]
set_seed(42)
loading = {"cache_dir": None, "revision": "main", "token": None, "trust_remote_code": False}
config = XLMRobertaConfig.from_pretrained(path, **loading)
tokenizer = XLMRobertaTokenizer.from_pretrained(path, use_fast=True, **loading)
model = XLMRobertaForMultipleChoice.from_pretrained(path, from_tf=False, config=config, **loading)

contexts = ["All human beings are born", "Everyone has the right to"] * 4
endings = [["free.", "yesterday in rights.", "work", "equal"], ["life", "liberty and security", "no", "rest"]] * 4
first_sentences = list(chain(*[[context] * 4 for context in contexts]))
second_sentences = list(chain(*endings))
tokenized = tokenizer(first_sentences, second_sentences, truncation=True, max_length=64, padding=False)
grouped = {k: [v[i : i + 4] for i in range(0, len(v), 4)] for k, v in tokenized.items()}
dataset = [{**{key: grouped[key][i] for key in grouped}, "label": i % 3} for i in range(len(contexts))]


def compute_metrics(eval_predictions):
    predictions, label_ids = eval_predictions
    return {"accuracy": (np.argmax(predictions, axis=1) == label_ids).astype(np.float32).mean().item()}


trainer = Trainer(
    model=model,
    args=two_steps(out),
    train_dataset=dataset,
    eval_dataset=dataset,
    processing_class=tokenizer,
    data_collator=DataCollatorForMultipleChoice(tokenizer=tokenizer, pad_to_multiple_of=None, return_tensors="pt"),
    compute_metrics=compute_metrics,
)
train_result = trainer.train()
trainer.save_model()
metrics = trainer.evaluate()
predictions = trainer.predict(dataset).predictions

again = XLMRobertaForMultipleChoice.from_pretrained(out)
batch = tokenizer(first_sentences[:4], second_sentences[:4], padding=True, return_tensors="pt")
logits = again(**{key: tensor[None] for key, tensor in batch.items()}).logits
results = {
    "train_loss": train_result.training_loss,
    "eval": {key: metrics[key] for key in ("eval_loss", "eval_accuracy")},
    "predictions": predictions.tolist(),
    "reloaded": logits.tolist(),
}
Path(out, "results.json").write_text(json.dumps(results))
