"""Fine-tunes a reader of answers, evaluates it and saves, with the calls of run_qa.py."""

import json
import sys
from pathlib import Path

from transformers import Trainer, default_data_collator, set_seed

from tests.scripts.arguments import two_steps
from xlmr_ray import XLMRobertaConfig, XLMRobertaForQuestionAnswering, XLMRobertaTokenizer

path, out = sys.argv[1:]
set_seed(42)
loading = {"cache_dir": None, "revision": "main", "token": None, "trust_remote_code": False}
config = XLMRobertaConfig.from_pretrained(path, **loading)
tokenizer = XLMRobertaTokenizer.from_pretrained(path, use_fast=True, **loading)
model = XLMRobertaForQuestionAnswering.from_pretrained(path, from_tf=False, config=config, **loading)

CONTEXT = "All human beings are born free and equal in dignity and rights. They are endowed with reason and conscience."
questions = ["How are human beings born?", "With what are they endowed?"] * 2
answers = ["free and equal", "reason and conscience"] * 2
pad_on_right = tokenizer.padding_side == "right"
tokenized = tokenizer(
    questions if pad_on_right else [CONTEXT] * 4,
    [CONTEXT] * 4 if pad_on_right else questions,
    truncation="only_second" if pad_on_right else "only_first",
    max_length=min(32, tokenizer.model_max_length),
    stride=8,
    return_overflowing_tokens=True,
    return_offsets_mapping=True,
    padding="max_length",
)
sample_mapping = tokenized.pop("overflow_to_sample_mapping")
offset_mapping = tokenized.pop("offset_mapping")
tokenized["start_positions"], tokenized["end_positions"] = [], []
for i, offsets in enumerate(offset_mapping):
    input_ids = tokenized["input_ids"][i]
    cls_index = input_ids.index(tokenizer.cls_token_id)
    sequence_ids = tokenized.sequence_ids(i)
    start_char = CONTEXT.index(answers[sample_mapping[i]])
    end_char = start_char + len(answers[sample_mapping[i]])
    first = 0
    while sequence_ids[first] != 1:
        first += 1
    last = len(input_ids) - 1
    while sequence_ids[last] != 1:
        last -= 1
    if not (offsets[first][0] <= start_char and offsets[last][1] >= end_char):
        tokenized["start_positions"].append(cls_index)
        tokenized["end_positions"].append(cls_index)
        continue
    while first < len(offsets) and offsets[first][0] <= start_char:
        first += 1
    while offsets[last][1] >= end_char:
        last -= 1
    tokenized["start_positions"].append(first - 1)
    tokenized["end_positions"].append(last + 1)
dataset = [{key: tokenized[key][i] for key in tokenized} for i in range(len(offset_mapping))]

trainer = Trainer(
    model=model,
    args=two_steps(out),
    train_dataset=dataset,
    eval_dataset=dataset,
    processing_class=tokenizer,
    data_collator=default_data_collator,
)
train_result = trainer.train()
trainer.save_model()
metrics = trainer.evaluate()
start_logits, end_logits = trainer.predict(dataset).predictions

again = XLMRobertaForQuestionAnswering.from_pretrained(out)
reread = again(**tokenizer(questions[0], CONTEXT, return_tensors="pt"))
results = {
    "train_loss": train_result.training_loss,
    "eval": metrics["eval_loss"],
    "predictions": [start_logits.tolist(), end_logits.tolist()],
    "reloaded": [reread.start_logits.tolist(), reread.end_logits.tolist()],
    "positions": [tokenized["start_positions"], tokenized["end_positions"]],
}
Path(out, "results.json").write_text(json.dumps(results))
