"""What fewer bits cost and bring: how far results move from those in float32, how well a text still finds its
translation, and how fast this CPU computes them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from xlmr_ray.batch.job import Job
from xlmr_ray.bench.measure import load, timed
from xlmr_ray.bench.sample import Sample, take_sample
from xlmr_ray.bench.small_vectors import Loss, losses, show_losses
from xlmr_ray.demo import CORPUS
from xlmr_ray.engine.cpu_precision import has_instructions
from xlmr_ray.engine.engine import Engine
from xlmr_ray.errors import UserError
from xlmr_ray.model.encoder import SelfAttention
from xlmr_ray.model.kernels.library import cpu_capabilities
from xlmr_ray.model.linear import use_torch
from xlmr_ray.model.quantized.fp8 import eight_bit_floats
from xlmr_ray.tasks.embedding import Embedding

# (dtype, quantization): the first is what the others are compared with.
VARIANTS: tuple[tuple[str, str | None], ...] = (
    ("float32", None),
    ("bfloat16", None),
    ("float16", None),
    ("float32", "int8"),
    ("bfloat16", "int8"),
    ("bfloat16", "fp8"),
    ("auto", "int8-weights"),
    ("auto", "nf4"),
)
HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}
# Of how many passes over the sample the fastest is the speed.
TIMES = 2
# Each article of the Universal Declaration in these languages looks for itself in English.
LANGUAGES = ("de", "es", "fr", "ru", "zh", "ar", "hi", "tr", "vi", "fi")
ENGLISH = "en"


@dataclass(frozen=True)
class Cost:
    """Of a variant, against float32: the largest and the mean absolute change of a result, the largest result in
    float32, the share of results (a row each) whose largest entry is still the same, and the share of UDHR articles
    that find their translation, None where the job has no embedding. `speed` is its rate over that of float32, on all
    cores; None where the variant was only imitated, by rounding.
    """

    name: str
    largest: float
    mean: float
    largest_result: float
    same: float
    retrieval: float | None
    speed: float | None


@dataclass(frozen=True)
class Articles:
    """UDHR articles: the `language` and the `number` of each (N), and their encoded table."""

    language: pa.ChunkedArray
    number: pa.ChunkedArray
    encoded: pa.Table


@dataclass(frozen=True)
class Quality:
    """`costs` of every variant, float32 first; `losses` of small vectors, none where the first task gives none."""

    costs: list[Cost]
    losses: list[Loss]


def quality(job: Job, *, most: int, say: Callable[[str], None]) -> Quality:
    """What this machine can do, for the job's first task and at most so many documents."""
    sample = take_sample(job, most)
    task, articles = sample.tasks[0], udhr(sample)
    wanted: NDArray[np.float32] | None = None
    seconds_float32 = 0.0
    costs = []
    small: list[Loss] = []
    for dtype, quantization in VARIANTS:
        half = HALF.get(dtype)
        imitated = quantization == "fp8" or not has_instructions(dtype, cpu_capabilities())
        name = "int8, bfloat16" if half and quantization == "int8" else quantization or dtype
        settings = job.engine.model_copy(
            update={
                "dtype": "float32" if imitated else dtype,
                "quantization": None if imitated else quantization,
                "device": "cpu",
            }
        )
        say(name)
        try:
            if imitated and quantization == "int8":
                raise UserError("this CPU has no instructions for it")
            engine = load(job.model_copy(update={"engine": settings}), sample)
            if imitated:
                for part in (engine.model, *engine.heads):
                    use_torch(part)
                if quantization == "fp8":
                    eight_bit_floats(engine.model.encoder)
                if half:
                    round_off(engine, half)
        except UserError as error:
            say(f"{name} is left out: {error}")
            continue
        got = engine.results(sample.encoded)[0].raw
        again = partial(engine.results, sample.encoded)
        seconds = None if imitated else min(timed(again) for _ in range(TIMES))
        seconds_float32 = seconds_float32 or seconds or 0.0
        of_articles = None
        if isinstance(task, Embedding) and articles is not None:
            found = engine.run(articles.encoded["input_ids"], tasks=[0]).raw[0]
            of_articles = float_vectors(task, found, articles.encoded)
            if wanted is None:
                small = small_vectors(of_articles, float_vectors(task, got, sample.encoded[0]))
        wanted = got if wanted is None else wanted
        change = np.abs(got - wanted)
        costs.append(
            Cost(
                name,
                float(np.nanmax(change)),
                float(np.nanmean(change)),
                float(np.nanmax(np.abs(wanted))),
                float((got.argmax(-1) == wanted.argmax(-1)).mean()),
                None if articles is None or of_articles is None else cross_lingual_retrieval(of_articles, articles),
                None if seconds is None else seconds_float32 / seconds,
            )
        )
    return Quality(costs, small)


def float_vectors(task: Embedding, raw: NDArray[np.float32], encoded: pa.Table) -> NDArray[np.float32]:
    """The vectors `(N, width)` of the documents of an encoded table in float32, of which `raw` are the results."""
    table = replace(task, precision="float32", ranges=None).postprocess(raw, encoded)
    found: NDArray[np.float32] = table["embedding"].combine_chunks().flatten().to_numpy()
    return found.reshape(table.num_rows, -1)


def small_vectors(articles: NDArray[np.float32], documents: NDArray[np.float32]) -> list[Loss]:
    """Over the vectors of the UDHR's articles and of the sample's documents, where there are several."""
    return losses({"UDHR": articles} | ({"documents": documents} if len(documents) > 1 else {}))


def round_off(engine: Engine, half: torch.dtype) -> None:
    """Rounds an engine's weights, and in passing what goes into its norms and comes out of its layers, to `half`.

    As a GPU computes: sums in float32, operands and results in 16 bits. CPUs without such units take minutes for that.
    """

    def rounded(x: Any) -> Any:
        if isinstance(x, tuple):
            return tuple(map(rounded, x))
        return x.to(half).float() if isinstance(x, Tensor) else x

    for part in (engine.model, *engine.heads):
        for parameter in part.parameters():
            parameter.data = rounded(parameter.data)
        for module in part.modules():
            if isinstance(module, nn.LayerNorm):
                module.register_forward_pre_hook(lambda module, given: rounded(given))
            if isinstance(module, SelfAttention) or not list(module.children()):
                module.register_forward_hook(lambda module, given, out: rounded(out))


def udhr(sample: Sample) -> Articles | None:
    """The articles as the first task reads them, where that is an embedding."""
    task = sample.tasks[0]
    if not isinstance(task, Embedding):
        return None
    rows = pa.concat_tables(pq.read_table(path) for path in sorted(CORPUS.glob("*.parquet")))
    rows = rows.filter(pc.is_in(rows["lang"], pa.array([ENGLISH, *LANGUAGES])))
    return Articles(rows["lang"], rows["article"], task.prepare(rows.select(["text"]), sample.tokenizers[0]))


def cross_lingual_retrieval(found: NDArray[np.float32], articles: Articles) -> float:
    """The share of articles in another language whose nearest English article, by vectors `(N, width)`, is the same."""
    unit = torch.nn.functional.normalize(torch.tensor(found), dim=-1)
    english = np.array(pc.equal(articles.language, ENGLISH))
    numbers = np.array(articles.number)
    nearest = (unit[~english] @ unit[english].T).argmax(1).numpy()
    return float((numbers[english][nearest] == numbers[~english]).mean())


def show_quality(found: Quality, console: Console) -> None:
    """A table of the costs, and one of the losses."""
    costs = found.costs
    table = Table(box=None, pad_edge=False)
    names = ("", "largest change", "mean change", "same largest entry", "UDHR retrieval", "speed here")
    for index, name in enumerate(names):
        table.add_column(name, justify="right" if index else "left")
    for cost in costs:
        table.add_row(
            cost.name,
            f"{cost.largest:.2e}",
            f"{cost.mean:.2e}",
            f"{cost.same:.2%}",
            "" if cost.retrieval is None else f"{cost.retrieval:.2%}",
            "" if cost.speed is None else f"{cost.speed:.2f}",
        )
    console.print(table)
    console.print(f"changes of the first task's results, which are at most {costs[0].largest_result:.3g}")
    if rounded := [cost.name for cost in costs if cost.speed is None]:
        console.print(f"{', '.join(rounded)}: on the CPU, every operand and result rounded as a GPU would round it")
    fastest = max((cost for cost in costs if cost.speed is not None), key=lambda cost: cost.speed or 0)
    settings = ", ".join(f"{'dtype' if name in HALF else 'quantization'}: {name}" for name in fastest.name.split(", "))
    if fastest is costs[0]:
        console.print("speed: over that of float32 on this CPU, where nothing is faster than that")
    else:
        console.print(f"speed: over that of float32 on this CPU; the fastest is engine: {{{settings}}}")
    if found.losses:
        console.print()
        show_losses(found.losses, console)
