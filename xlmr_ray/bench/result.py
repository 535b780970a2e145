"""What a measurement found: `bench.json`."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from xlmr_ray.errors import UserError

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Machine:
    """`matrix` and `matrix_products`: operations a second of square matmuls, measured, in the engine's floating point
    type and as its linear layers are done (the same but for `int8`).
    """

    host: str
    device: str
    on_gpu: bool
    cpus: int
    memory_bytes: int
    torch: str
    matrix: float
    matrix_products: float


@dataclass(frozen=True, kw_only=True)
class Work:
    """What was measured with. `operations` are the encoder's for all documents, of which `attention_operations` are
    attention's; `output_bytes` the Parquet file of all results without the columns carried along; `repeated` the share
    of the documents taken that were equal to another, and left out.
    """

    model: str
    tasks: tuple[str, ...]
    dtype: str
    quantization: str | None
    attn_implementation: str
    max_tokens: int
    documents: int
    sequences: int
    tokens: int
    longest: int
    operations: float
    attention_operations: float
    output_bytes: int
    repeated: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Of `workers` at once: one core each for tokenizers, one process each for encoders. `spread`: the largest of the
    rounds' rates over the smallest.
    """

    workers: int
    documents_per_second: float
    tokens_per_second: float
    spread: float


@dataclass(frozen=True, kw_only=True)
class PipelineRun:
    """A run with Ray, from its launch to the published output. `steady`: tokens a second between the first shard's
    commit and the last one's.
    """

    documents: int
    seconds: float
    first_commit_seconds: float
    steady_tokens_per_second: float


@dataclass(frozen=True, kw_only=True)
class Bench:
    """`shares` of an encoder's time: `products`, `attention`, `quantizing`, `rest`. `padding`: tokens computed beyond
    those of the documents, as a share of these.
    """

    machine: Machine
    work: Work
    load_seconds: float
    tokenizing: Rate
    encoding: Rate
    padding: float
    shares: Mapping[str, float]
    pipeline: PipelineRun | None = None

    @property
    def ceiling(self) -> float:
        """Tokens a second if all time went into the encoder's arithmetic at the machine's measured matrix rate."""
        attention = self.work.attention_operations
        seconds = (self.work.operations - attention) / self.machine.matrix_products + attention / self.machine.matrix
        return self.work.tokens / seconds

    @property
    def utilization(self) -> float:
        """The share of the ceiling that the engine reached (MFU, for a model in floating point)."""
        return self.encoding.tokens_per_second / self.ceiling

    @property
    def tokenizer_cores(self) -> float:
        """Cores of tokenizers that keep all encoders busy."""
        return self.encoding.documents_per_second / self.tokenizing.documents_per_second

    def to_json(self) -> str:
        derived = {
            "ceiling_tokens_per_second": self.ceiling,
            "utilization": self.utilization,
            "tokenizer_cores": self.tokenizer_cores,
        }
        return json.dumps({"version": VERSION, **asdict(self), **derived}, indent=2, ensure_ascii=False) + "\n"


def read_bench(path: Path) -> Bench:
    """Raises UserError for a file that is none, or of another version."""
    try:
        content = json.loads(path.read_text("utf-8"))
        if content["version"] != VERSION:
            raise UserError(
                f"{path}: written in format {content['version']}, this version reads {VERSION}; measure again"
            )
        return _bench(content)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; `xlmr-ray bench` writes one") from None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a result of `xlmr-ray bench` ({type(error).__name__}: {error})") from None


def _bench(content: Mapping[str, Any]) -> Bench:
    work = dict(content["work"])
    return Bench(
        machine=Machine(**content["machine"]),
        work=Work(**{**work, "tasks": tuple(work["tasks"])}),
        load_seconds=content["load_seconds"],
        tokenizing=Rate(**content["tokenizing"]),
        encoding=Rate(**content["encoding"]),
        padding=content["padding"],
        shares=dict(content["shares"]),
        pipeline=None if content["pipeline"] is None else PipelineRun(**content["pipeline"]),
    )
