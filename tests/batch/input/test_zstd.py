"""Zstandard files of pzstd and of `zstd --long`, whole and cut; the measure is the tool where it is installed."""

import os
import shutil
import subprocess

import pytest
import zstandard

from xlmr_ray.batch import codes
from xlmr_ray.batch.input.columns import Columns
from xlmr_ray.batch.input.planning import DeadLetter, plan_shards
from xlmr_ray.batch.input.read_shard import read_shard
from xlmr_ray.batch.input.readers import zstd
from xlmr_ray.batch.input.source import find_inputs

TEXT = Columns({"text": "text"})
TEXTS = [f"{number} {os.urandom(20).hex()}" for number in range(4000)]
DATA = "".join(f"{text}\n" for text in TEXTS).encode()


def skippable(content=b"size"):
    return b"\x50\x2a\x4d\x18" + len(content).to_bytes(4, "little") + content


def long_window(data, window=29):
    settings = zstandard.ZstdCompressionParameters.from_level(3, window_log=window, enable_ldm=True)
    compressor = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    return compressor.compress(data) + compressor.flush()


def read(tmp_path, data, name="a.txt.zst"):
    (tmp_path / name).write_bytes(data)
    pieces = list(plan_shards(find_inputs(str(tmp_path)).inputs, shard_rows=500, columns=TEXT))
    dead = [piece for piece in pieces if isinstance(piece, DeadLetter)]
    shards = [piece for piece in pieces if not isinstance(piece, DeadLetter)]
    return [text for shard in shards for text in read_shard(shard, TEXT)["text"].to_pylist()], dead


HALF = DATA[: len(DATA) // 2], DATA[len(DATA) // 2 :]
PARTS = {
    "pzstd": b"".join(skippable() + zstandard.compress(half) for half in HALF),
    "frames": b"".join(map(zstandard.compress, HALF)),
    "long": long_window(DATA),
    "long after a skippable frame": skippable(b"x" * 99) + skippable() + long_window(DATA),
    "long frames": b"".join(map(long_window, HALF)) + skippable(),
    "as long as there is": long_window(DATA, 31),
    "a short window, then a long one": zstandard.compress(HALF[0]) + long_window(HALF[1]),
    "long, then longer, then short": b"".join([long_window(HALF[0], 28), long_window(HALF[1], 31)])
    + zstandard.compress(b""),
}


@pytest.mark.parametrize("kind", PARTS)
def test_frames_of_all_kinds(tmp_path, kind):
    assert read(tmp_path, PARTS[kind]) == (TEXTS, [])


@pytest.mark.parametrize("kind", ["pzstd", "frames", "long", "long frames"])
@pytest.mark.parametrize("damage", ["cut", "noise", "two bytes"])
def test_what_is_before_a_damage_is_read(tmp_path, kind, damage):
    data = PARTS[kind]
    place = len(data) * 3 // 4
    damaged = {"cut": data[:place], "noise": data + b"noise", "two bytes": data[:2]}
    texts, (dead,) = read(tmp_path, damaged[damage])
    assert texts[:-1] == TEXTS[: len(texts) - 1] if texts else damage == "two bytes"
    assert dead.code == (codes.WRONG_FORMAT if damage == "two bytes" else codes.CORRUPT_STREAM)


@pytest.mark.parametrize("command", [["pzstd", "-q", "-p", "2"], ["zstd", "-q", "--long=31", "--ultra", "-20"]])
def test_the_tools_own(tmp_path, command):
    if shutil.which(command[0]) is None:
        pytest.skip(f"no {command[0]} here")
    packed = subprocess.run([*command, "-c", "-"], input=DATA, capture_output=True, check=True).stdout
    assert read(tmp_path, packed) == (TEXTS, [])


def test_a_little_of_a_bomb_is_inflated_at_a_time():
    data = long_window(b"0" * (1 << 28))
    blocks = zstd.inflated(lambda start, stop: data[start:stop], len(data), 1 << 20)
    assert max(map(len, blocks)) <= 32 << 20
