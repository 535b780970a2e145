"""Every task's pass over a batch as a GPU would see it, without one: fake tensors on device `cuda` have shapes and no
numbers. A tensor on the wrong device, a wait for the device, and a kernel more a layer are found so.
"""

from collections import Counter
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.attention.varlen
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from xlmr_ray import XLMRobertaConfig
from xlmr_ray.engine.engine import Engine, EngineStats
from xlmr_ray.engine.memory import CutBudget
from xlmr_ray.engine.parts import BatchPart
from xlmr_ray.model.lora import Spans
from xlmr_ray.model.meta_device import shapes_only
from xlmr_ray.model.packed_batch import PackedBatch, pack
from xlmr_ray.model.quantized.fp8 import eight_bit_floats
from xlmr_ray.modeling.xlm_roberta import XLMRobertaModel
from xlmr_ray.tasks.registry import TASKS

aten = torch.ops.aten
CUDA = torch.device("cuda:0")
SIZES = {
    "vocab_size": 1000,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 514,
}


class OnFakeCuda(TorchFunctionMode):
    """Lets tensors go to a device that this torch may be built without: what needs its libraries is done by fakes."""

    def __init__(self, fakes: FakeTensorMode) -> None:
        super().__init__()
        self.fakes = fakes

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        first = args[0] if args else None
        if name == "pin_memory":
            return first
        if name == "__getitem__" and isinstance(first, torch.Tensor) and first.device.type == "cuda":
            return indexed(first, args[1])
        if name == "from_numpy" or (name == "numpy" and type(first) is torch.Tensor):
            with unset_fake_temporarily():
                return function(*args, **kwargs)
        if name == "tensor" and torch.device(kwargs.get("device") or "cpu").type == "cuda":
            raise AssertionError("torch.tensor(…, device=cuda) waits for its copy")
        if name in ("to", "cuda") and isinstance(first, torch.Tensor):
            places = [one for one in (*args[1:], *kwargs.values()) if isinstance(one, torch.device | str)]
            if places and torch.device(places[0]).type == "cuda" and first.device.type == "cpu":
                fake = first if isinstance(first, FakeTensor) else self.fakes.from_tensor(first)
                return aten._to_copy.default(fake, device=CUDA, non_blocking=kwargs.get("non_blocking", False))
        return function(*args, **kwargs)


def indexed(x, key):
    """`x[key]` by operations that need no library of the device's."""
    keys = key if isinstance(key, tuple) else (key,)
    if Ellipsis in [one for one in keys if not isinstance(one, torch.Tensor)]:
        at = next(i for i, one in enumerate(keys) if one is Ellipsis)
        rest = sum(one is not None for one in keys) - 1
        keys = keys[:at] + (slice(None),) * (x.dim() - rest) + keys[at + 1 :]
    dimension, by_tensor = 0, []
    for one in keys:
        if one is None:
            x = aten.unsqueeze.default(x, dimension)
        elif isinstance(one, int):
            x = aten.select.int(x, dimension, one)
            continue
        elif isinstance(one, slice):
            x = aten.slice.Tensor(x, dimension, one.start, one.stop, one.step or 1)
        by_tensor.append(one if isinstance(one, torch.Tensor) else None)
        dimension += 1
    while by_tensor and by_tensor[-1] is None:
        by_tensor.pop()
    return aten.index.Tensor(x, by_tensor) if by_tensor else x


class Watched(TorchDispatchMode):
    """Keeps the operations on the device; one that waits for it is an error."""

    WAITS = (aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default)

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        on_device = any(isinstance(one, torch.Tensor) and one.device.type == "cuda" for one in args)
        if on_device:
            assert function not in self.WAITS, f"{function} waits for the device"
            if function is aten._to_copy.default and torch.device(kwargs.get("device") or CUDA).type == "cpu":
                assert kwargs.get("non_blocking"), "a copy from the device that is waited for"
            if function is aten.copy_.default and args[0].device.type == "cpu":
                assert kwargs.get("non_blocking") or args[2:3] == (True,), "a copy from the device that is waited for"
            if function is aten.index.Tensor:
                masks = [one for one in args[1] if one is not None and one.dtype in (torch.bool, torch.uint8)]
                assert not masks, "an index by a mask waits for the device"
            self.seen.append(str(function))
        return function(*args, **kwargs)


def run(name, *, attention="auto", dtype=torch.bfloat16, fp8=False, decoder=False, layers=2, targets=(), **options):
    """The results' shape, and the operations on the device, of a batch of four sequences."""
    config = XLMRobertaConfig(**SIZES, num_hidden_layers=layers, is_decoder=decoder)
    config.attn_implementation = attention
    with shapes_only():
        model = XLMRobertaModel(config, add_pooling_layer=False)
    task = TASKS[name].bind(Path("/nonexistent"), config, options)
    if targets:
        object.__setattr__(task, "target_ids", list(targets))  # its tokenizer would have made them of words
    head = task.head()
    fakes, watched = FakeTensorMode(allow_non_fake_inputs=False), Watched()
    lengths = np.array([300, 200, 17, 5])
    splits = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.arange(splits[-1], dtype=np.int32) % 900 + 4
    labels = np.full(splits[-1], -100, np.int32)
    labels[5:90], labels[splits[1:-1] + 2] = 7, 9
    batch = pack(ids, splits, np.arange(4), config, targets=labels)
    with (
        mock.patch("torch.cuda.get_device_capability", return_value=(9, 0)),
        mock.patch("torch.empty", side_effect=empty_on_cpu(torch.empty)),
        fakes,
        OnFakeCuda(fakes),
    ):
        for module in (model, head):
            on_device(module, dtype)
        model.eval()
        head.eval()
        model.encoder.fuse()
        if fp8:
            eight_bit_floats(model.encoder)
        engine = Engine.__new__(Engine)
        engine.model, engine.tasks, engine.heads, engine.device = model, [task], [head], CUDA
        engine.max_tokens, engine.stats, engine.memory, engine.spans = 16384, EngineStats(), CutBudget(), Spans()
        with watched:
            (out,) = engine.compute(batch, [BatchPart(task, 0, 0, 4)])
    return tuple(out.shape), watched.seen


def empty_on_cpu(original):
    """`torch.empty` that does not pin: there is no device's library to do it."""

    def empty(*args, **kwargs):
        kwargs.pop("pin_memory", None)
        return original(*args, **kwargs)

    return empty


def on_device(module, dtype):
    for part in module.modules():
        for key, one in part._parameters.items():
            if one is not None:
                there = torch.empty(one.shape, dtype=dtype, device="cuda")
                part._parameters[key] = torch.nn.Parameter(there, requires_grad=False)
        for key, one in part._buffers.items():
            if one is not None:
                part._buffers[key] = torch.empty(one.shape, dtype=one.dtype, device="cuda")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *(("embedding", {"pooling": pooling}) for pooling in ("mean", "cls", "max")),
        ("embedding", {"dtype": torch.float16}),
        ("embedding", {"fp8": True}),
        ("embedding", {"attention": "sdpa", "dtype": torch.float32}),
        ("text-classification", {}),
        ("token-classification", {}),
        ("question-answering", {}),
        ("fill-mask", {}),
        ("fill-mask", {"targets": (11, 12, 13, 14, 15, 16)}),
        ("pseudo-perplexity", {}),
        ("multiple-choice", {}),
        ("feature-extraction", {}),
        ("feature-extraction", {"pooling": "mean"}),
        ("perplexity", {"decoder": True}),
    ],
    ids=str,
)
def test_nothing_waits_for_the_device_and_nothing_lies_elsewhere(name, options):
    shape, seen = run(name, **options)
    assert shape
    assert seen


def test_few_operations_a_layer():
    """Each is a kernel or a view; what is added to a layer shows here first."""
    two, four = (run("embedding", layers=layers)[1] for layers in (2, 4))
    each = Counter(four) - Counter(two)
    views = ("view", "split", "unbind", "select", "slice", "transpose", "expand", "alias", "t.default", "dropout")
    kernels = {name: count // 2 for name, count in each.items() if not any(f".{view}" in name for view in views)}
    assert sum(kernels.values()) <= 11, kernels


def test_the_watch_sees_a_wait():
    with (
        mock.patch.object(PackedBatch, "first", lambda batch, hidden: hidden[hidden[:, 0] > 0]),
        pytest.raises(AssertionError, match="waits for the device"),
    ):
        run("embedding", pooling="cls")
