"""A job's steps in this process instead of on Ray, whose actors take 15 seconds of CPU to start: for tests of anything
else. The driver, its plan, the packs and blocks that travel, the steps and all files are those of a run on Ray.
"""

import contextlib

import pytest
import torch

from xlmr_ray.batch import ranges, score, while_planned
from xlmr_ray.batch.cluster import Resources
from xlmr_ray.batch.repeats import Keeping
from xlmr_ray.batch.stages.encode import Encode
from xlmr_ray.batch.stages.packs import TokenizeEach, packs_for
from xlmr_ray.batch.stages.write import Write


def stream(todo, count, recipe, size, last=Write):
    return stream_packs(packs_for(todo, count, size.tokenizers), recipe, size, last)


def stream_packs(packs, recipe, _size, last=Write):
    steps = TokenizeEach(recipe), Encode(recipe), last(recipe)
    for pack in packs:
        for block in steps[0](pack):
            yield from steps[2](steps[1](block)).to_pylist()


@contextlib.contextmanager
def filled_shelf(todo, tokenizers):
    yield (pack for shards in map(list, todo) for pack in packs_for(shards, len(shards), tokenizers))


@contextlib.contextmanager
def connected(_address):
    yield


@contextlib.contextmanager
def here():
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        for module in (score, ranges):
            patch.setattr(module, "stream", stream)
            patch.setattr(module, "rows_of", iter)
        for name, ours in (("filled_shelf", filled_shelf), ("packs_on", iter), ("stream_packs", stream_packs)):
            patch.setattr(while_planned, name, ours)
        patch.setattr(while_planned, "rows_of", iter)
        for module in (score, while_planned):
            patch.setattr(module, "connected", connected)
        patch.setattr(score, "cluster_resources", lambda: Resources((2.0,), (0.0,), float(8 << 30)))
        patch.setattr(score, "keeping", lambda *_: Keeping())  # what keeps results is an actor
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def steps_here():
    with here():
        yield
