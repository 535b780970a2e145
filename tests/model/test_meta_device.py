import subprocess
import sys

import torch
from torch import nn

from xlmr_ray.model.meta_device import shapes_only

LOADED = """
import sys
import xlmr_ray.batch.run
from xlmr_ray.checkpoint.files import resolve
from xlmr_ray.engine.engine import Engine
from xlmr_ray.engine.settings import EngineSettings
from xlmr_ray.tasks.registry import bind_task

folder = resolve("embedded:mini")
Engine.load(folder, [bind_task("text-classification", folder, {})], EngineSettings(device="cpu"))
print(*[name for name in ("torch._dynamo", "transformers") if name in sys.modules])
"""


def test_modules_are_shapes():
    with shapes_only():
        module = nn.Sequential(nn.Linear(3, 5), nn.Embedding(7, 2, padding_idx=1), nn.LayerNorm(4))
    assert [tuple(p.shape) for p in module.parameters()] == [(5, 3), (5,), (7, 2), (4,), (4,)]
    assert all(p.is_meta for p in module.parameters())


def test_values_are_drawn_again_outside():
    with shapes_only():
        pass
    assert nn.Linear(3, 5).weight.abs().sum() > 0
    assert torch.empty(100).normal_().std() > 0.5


def test_a_launch_and_a_loaded_model_import_nothing_slow_that_they_do_not_use():
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
