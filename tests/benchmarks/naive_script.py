"""The script that people write first: Ray Data around transformers, 32 documents a batch in arrival order, padded in
the actor.

usage: python -m tests.benchmarks.naive_script MODEL INPUT.parquet OUTPUT [DTYPE]
"""

import sys

import ray
import torch
import transformers


class Embed:
    def __init__(self, folder: str, dtype: str) -> None:
        torch.set_num_threads(int(ray.cluster_resources()["CPU"]))
        self.tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
        self.model = transformers.XLMRobertaModel.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()

    @torch.inference_mode()
    def __call__(self, batch):
        inputs = self.tokenizer(list(batch["text"]), padding=True, truncation=True, max_length=512, return_tensors="pt")
        hidden = self.model(**inputs).last_hidden_state.float()
        mask = inputs["attention_mask"][..., None].float()
        pooled = (hidden * mask).sum(1) / mask.sum(1)
        batch["embedding"] = torch.nn.functional.normalize(pooled, dim=-1).numpy()
        return batch


def main() -> None:
    model, source, output, dtype = [*sys.argv[1:], "float32"][:4]
    ray.init(include_dashboard=False, logging_level="ERROR")
    dataset = ray.data.read_parquet(source)
    strategy = ray.data.ActorPoolStrategy(size=1)
    dataset.map_batches(Embed, fn_constructor_args=(model, dtype), batch_size=32, compute=strategy).write_parquet(
        output
    )


if __name__ == "__main__":
    main()
