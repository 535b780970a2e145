"""A tokenizer that died in the middle of its pack: its successor does what has no record, and nothing else."""

import gzip
import json

import pytest

from tests.batch.test_run import job
from tests.models import save_classifier
from xlmr_ray.batch.ledger.record import read_record
from xlmr_ray.batch.prepare import prepare_run
from xlmr_ray.batch.stages.block import COMMITTED, raise_failure
from xlmr_ray.batch.stages.encode import Encode
from xlmr_ray.batch.stages.packs import TokenizeEach, packs_for
from xlmr_ray.batch.stages.shard_cost import Committed
from xlmr_ray.batch.stages.write import Write
from xlmr_ray.batch.store.open import open_store
from xlmr_ray.errors import JobFailed


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("model"))


def test_what_has_a_record_is_not_done_again(tmp_path, model, monkeypatch):
    path = tmp_path / "in.jsonl.gz"
    lines = [json.dumps({"id": str(at), "text": f"Document number {at}"}) + "\n" for at in range(40)]
    path.write_bytes(gzip.compress("".join(lines).encode()))
    content = job(model, path, tmp_path / "out", rows=4, input={"path": str(path), "id": "id"})
    store = open_store(str(tmp_path / "out"))
    recipe = (prepared := prepare_run(content, store)).recipe
    (pack,) = packs_for(prepared.plan.shards, 10, 1)
    tokenize, encode, write = TokenizeEach(recipe), Encode(recipe), Write(recipe)
    first = list(tokenize(pack))
    done = [0, 1, 2, 5]
    for at in done:
        write(encode(first[at]))
    again = TokenizeEach(recipe)
    again.restarted = True
    blocks = list(again(pack))
    assert [at for at, block in enumerate(blocks) if COMMITTED in block.column_names] == done
    ids = list(prepared.plan.ids())
    for at, block in enumerate(blocks):
        if at in done:
            # Where what the first one gave out is gone, and somebody waits for it.
            committed = Committed.from_row(write(encode(block)).to_pylist()[0])
            there = read_record(store, recipe.run_id, ids[at])
            assert (committed.record.attempt, committed.record.rows_in) == (there.attempt, 4)
        else:
            assert block["rows"].equals(first[at]["rows"])
            assert block["task0"].equals(first[at]["task0"])
    assert not any(COMMITTED in block.column_names for block in again(pack))  # only after a death it looks

    def fails(self, key):
        raise JobFailed("the store is down")

    monkeypatch.setattr(type(store), "head", fails)
    again.restarted = True
    (failed, *_) = again(pack)
    with pytest.raises(JobFailed, match=r"^the store is down$"):  # in the driver, and not as one of Ray's
        raise_failure(failed.to_pylist()[0])
