"""Run by test_cpu_kinds.py in a process that plays another CPU: prints what fails, one line each.

usage: python -m tests.parity.cpu_kinds FOLDER
"""

import copy
import sys
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import transformers

import xlmr_ray
from xlmr_ray.checkpoint.quantization import BitsAndBytesConfig
from xlmr_ray.engine.engine import Engine
from xlmr_ray.engine.settings import EngineSettings
from xlmr_ray.model.linear import supported
from xlmr_ray.tasks.registry import bind_task

# The sizes of multilingual-e5-small: with two threads, MKL splits sums over 1536 input features for Intel.
SIZES = {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 12, "num_hidden_layers": 2}
LENGTHS = (3, 9, 17, 33, 40, 64, 100, 130, 200)
IDS = torch.arange(5, 65).reshape(3, 20)


def parity(folder: Path) -> float:
    """The largest difference of logits from transformers, of their largest."""
    reference = transformers.XLMRobertaForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        wanted = reference(IDS).logits
        got = xlmr_ray.XLMRobertaForSequenceClassification.from_pretrained(folder)(IDS).logits
    return float((got - wanted).abs().max() / wanted.abs().max())


def changed_by_company(folder: Path, dtype: str, threads: int, quantization: str | None) -> int:
    """How many documents have another result beside others than alone."""
    torch.set_num_threads(threads)
    task = bind_task("text-classification", folder, {})
    engine = Engine.load(
        folder, [task], EngineSettings(device="cpu", dtype=dtype, quantization=quantization, max_tokens=4096)
    )
    rng = np.random.default_rng(0)
    texts = pa.array([[0, *rng.integers(5, 250, n - 2).tolist(), 2] for n in LENGTHS], pa.list_(pa.int32()))
    together = np.stack(engine.run(texts).raw[0])
    engine.max_tokens = 150
    fewer = np.stack(engine.run(texts).raw[0])
    alone = np.stack([engine.run(texts.slice(i, 1)).raw[0][0] for i in range(len(texts))])
    return int(((together != alone) | (together != fewer)).any(1).sum())


def changed_by_a_forward(folder: Path, quant_type: str) -> int:
    """How many tensors of a quantized model are others after a forward, and after saving and loading."""
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=quant_type, bnb_4bit_use_double_quant=True)
    model = xlmr_ray.XLMRobertaForSequenceClassification.from_pretrained(folder, quantization_config=config)
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        got = model(IDS).logits
    model.save_pretrained(folder / quant_type)
    again = xlmr_ray.XLMRobertaForSequenceClassification.from_pretrained(folder / quant_type)
    with torch.no_grad():
        assert torch.equal(again(IDS).logits, got)
    return sum(
        not torch.equal(before[name].as_subclass(torch.Tensor), tensor.as_subclass(torch.Tensor))
        for state in (model.state_dict(), again.state_dict())
        for name, tensor in state.items()
    )


def main(folder: Path) -> None:
    torch.manual_seed(0)
    config = transformers.XLMRobertaConfig(
        **SIZES, vocab_size=250, max_position_embeddings=520, type_vocab_size=1, num_labels=3
    )
    model = transformers.XLMRobertaForSequenceClassification(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(folder)
    xlmr_ray.XLMRobertaTokenizer.from_pretrained("embedded:mini").save_pretrained(folder)
    if (worst := parity(folder)) > 1e-5:
        print(f"parity: {worst}")
    kinds = [("float32", None), ("float32", "int8")]
    kinds += [("bfloat16", None)] if supported(torch.bfloat16) else []
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        pass
    else:
        kinds += [("float32", "nf4"), ("float32", "int8-weights")]
        for quant_type in ("nf4", "fp4"):
            if count := changed_by_a_forward(folder, quant_type):
                print(f"{quant_type}: {count} tensors changed")
    for dtype, quantization in kinds:
        for threads in (1, 2, 3):
            if count := changed_by_company(folder, dtype, threads, quantization):
                print(f"{dtype} {quantization} {threads} threads: {count} documents changed")
    print("looked at", *kinds)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    main(Path(sys.argv[1]))
