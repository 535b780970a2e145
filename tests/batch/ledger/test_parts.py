"""A plan that is made in parts is the plan that is made at once, whoever makes which part."""

import gzip
import itertools
import json
from collections import deque
from concurrent.futures import CancelledError

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xlmr_ray.batch import plan
from xlmr_ray.batch.input.columns import Columns
from xlmr_ray.batch.input.planning import DeadLetter, plan_shards
from xlmr_ray.batch.input.readers import READERS
from xlmr_ray.batch.input.source import find_inputs
from xlmr_ray.batch.ledger import parts as parts_module
from xlmr_ray.batch.ledger.json_by_line import Damaged
from xlmr_ray.batch.ledger.parts import (
    ShardSize,
    cut_key,
    folder,
    is_in_parts,
    part_key,
    part_keys,
    parts,
    read_part,
    shard_size,
)
from xlmr_ray.batch.ledger.status import status
from xlmr_ray.batch.ledger.verify import verify
from xlmr_ray.batch.plan import Unplanned, read_plan, write_plan
from xlmr_ray.batch.store.open import open_store

COLUMNS = Columns(text={"text": "text"}, keep=("lang",))
RUN = "a" * 16


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    where = tmp_path_factory.mktemp("in")
    for number in range(9):
        lines = "".join(json.dumps({"text": f"{number} {row}", "lang": "en"}) + "\n" for row in range(3 * number))
        (where / f"{number}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (where / "4.csv").write_text("text,lang\n" + "some,en\n" * 11)
    (where / "cut.jsonl.gz").write_bytes(gzip.compress(lines.encode())[:-9])
    (where / "empty.jsonl").write_bytes(b"")
    return find_inputs([str(where)]).inputs


def cut_from(inputs, rows=4):
    return lambda first: plan_shards(inputs[first:], shard_rows=rows, columns=COLUMNS, first=first)


def pieces_of(found):
    return [piece for part in found for piece in (*part.shards, *part.dead)]


def in_order(pieces, inputs):
    index = {one.key: at for at, one in enumerate(inputs)}
    return sorted(
        pieces, key=lambda p: (index[p.key], 1, "") if isinstance(p, DeadLetter) else (index[p.input.key], 0, p.id)
    )


@pytest.fixture
def every(monkeypatch):
    """Ends a part after each file."""
    monkeypatch.setattr(parts_module, "EVERY", 0.0)


@pytest.mark.usefixtures("every")
def test_parts_hold_what_planning_gives(inputs, local):
    direct = list(plan_shards(inputs, shard_rows=4, columns=COLUMNS))
    found = list(parts(local, RUN, inputs, cut_from(inputs)))
    assert len(found) > 5
    assert [part.until for part in found] == sorted({part.until for part in found})
    assert found[-1].until == len(inputs)
    assert in_order(pieces_of(found), inputs) == in_order(direct, inputs)
    assert {type(piece) for piece in direct} >= {DeadLetter}

    # Those that are there are taken as they are.
    again = list(parts(local, RUN, inputs, lambda first: pytest.fail("was cut anew")))
    assert pieces_of(again) == pieces_of(found)
    assert list(part_keys(local, RUN)) == [part_key(RUN, number) for number in range(len(found))]


@pytest.mark.usefixtures("every")
@given(st.data())
@settings(max_examples=25, deadline=None)
def test_whoever_makes_which_part(inputs, tmp_path_factory, data):
    """Launches that plan at once, each with parts of other lengths, and end anywhere: one plan."""
    store = open_store(str(tmp_path_factory.mktemp("out")))
    direct = in_order(plan_shards(inputs, shard_rows=4, columns=COLUMNS), inputs)
    lengths = itertools.cycle(data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))

    def made(inputs, first, cut, old=parts_module.made):
        group = []
        for part in old(inputs, first, cut):
            group.append(part)
            if len(group) == next(lengths) or part.until == len(inputs):
                yield parts_module.Part(
                    part.until, [s for one in group for s in one.shards], tuple(d for one in group for d in one.dead)
                )
                group = []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts_module, "made", made)
        launches = [parts(store, RUN, inputs, cut_from(inputs)) for _ in range(3)]
        found = [[], [], []]
        for turn in data.draw(st.lists(st.integers(0, 2), max_size=30)):
            if (part := next(launches[turn], None)) is not None:
                found[turn].append(part)
        left = list(parts(store, RUN, inputs, cut_from(inputs)))
    assert in_order(pieces_of(left), inputs) == direct
    for own in found:
        assert pieces_of(own) == pieces_of(left[: len(own)])


def test_a_shards_size_stays(local):
    assert not is_in_parts(local, RUN)
    assert shard_size(local, RUN, lambda: ShardSize(4, 100)) == ShardSize(4, 100)
    assert is_in_parts(local, RUN)
    assert shard_size(local, RUN, lambda: pytest.fail("was chosen anew")) == ShardSize(4, 100)

    other = "b" * 16

    def slow():  # another launch is faster
        local.create(cut_key(other), b'{"rows": 7, "bytes": 9}')
        return ShardSize(1, 1)

    assert shard_size(local, other, slow) == ShardSize(7, 9)
    local.put(cut_key(other), b'{"rows": 7}')
    with pytest.raises(Damaged, match=r"cut.json: is damaged"):
        shard_size(local, other, slow)


@pytest.mark.usefixtures("every")
def test_a_damaged_part(inputs, local):
    list(parts(local, RUN, inputs, cut_from(inputs)))
    key = part_key(RUN, 2)
    data = local.get(key)[0]
    for broken in (
        b"",
        data[: len(data) // 2],
        data.replace(b'"rows":', b'"row":', 1),
        data.replace(b'"until":', b'"up":'),
    ):
        local.put(key, broken)
        with pytest.raises(Damaged, match=r"0000002.json: is damaged"):
            read_part(local, RUN, 2, inputs)


@pytest.mark.usefixtures("every")
def test_the_plan_is_that_which_is_made_at_once(inputs, local, tmp_path):
    """And its parts go when it is there; until then status and verify know that it is being made."""
    head = {"run_id": RUN, "job": "test"}
    at_once = open_store(str(tmp_path / "other"))
    expected = write_plan(at_once, head, inputs, COLUMNS, shard_rows=4)
    unplanned = Unplanned(local, head, inputs, COLUMNS, ShardSize(4, plan.SHARD_BYTES), READERS, ())
    assert unplanned.so_far().rows == 0

    class Stopped(Exception):
        pass

    def stop(part):
        if part.until > 5:
            raise Stopped

    shard_size(local, RUN, lambda: unplanned.size)
    with pytest.raises(Stopped):
        unplanned.write(stop)
    assert read_plan(local, RUN) is None
    assert len(list(part_keys(local, RUN))) >= 2
    (seen,) = status(local)
    assert (seen.planned, seen.done) == (None, 0)
    assert any("plan.json: is missing: the run is being planned" in problem for problem in verify(local, RUN).problems)

    found = unplanned.write()
    key = f"_runs/{RUN}/plan.json"
    assert local.get(key)[0] == at_once.get(key)[0]
    assert list(found.shards) == list(expected.shards)
    assert found.dead == expected.dead
    assert not list(local.list(folder(RUN)))


def test_planning_that_is_stopped_gives_no_half_of_a_file(inputs):
    """A file that is given up in its middle is not planned as if it ended there."""
    direct = list(plan_shards(inputs, shard_rows=1, columns=COLUMNS))
    for before in (0, 1, 6, 20):
        found = []
        answers = iter([False] * before + [True] * 999)
        planned = plan_shards(inputs, shard_rows=1, columns=COLUMNS, workers=1, stop=answers.__next__)
        with pytest.raises(CancelledError):
            deque(map(found.append, planned), maxlen=0)
        assert found == direct[: len(found)]
        assert not found or found[-1].input != direct[len(found)].input
