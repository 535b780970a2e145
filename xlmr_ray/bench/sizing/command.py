"""`xlmr-ray plan`: the call as users make it."""

import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from xlmr_ray.batch.shard_rows import FEWEST_ROWS, MINUTE, MOST, SHARD_ROWS
from xlmr_ray.bench.result import read_bench
from xlmr_ray.bench.sizing.estimate import DRIVER_SHARDS, Amount, Estimate, estimate
from xlmr_ray.bench.sizing.hardware import hardware
from xlmr_ray.bench.sizing.rates import Rates, estimated, measured_rates
from xlmr_ray.checkpoint.files import resolve
from xlmr_ray.checkpoint.folder import read_config
from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.errors import UserError
from xlmr_ray.text.duration import duration

# Names for the two shapes that XLM-RoBERTa comes in; anything else is a checkpoint.
SHAPES = {
    "base": XLMRobertaConfig(),
    "large": XLMRobertaConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096),
}


def plan_command(
    *,
    bench: Path | None,
    on: str | None,
    model: str | None,
    documents: float | None,
    tokens: float | None,
    tokens_per_document: float | None,
    machines: int | None,
    hours: float | None,
    price: float | None,
    shard_rows: int | None,
    known: float,
    vectors: bool,
    as_json: bool,
    console: Console,
) -> None:
    """Prints the estimate and where its figures are from. Raises UserError where too little is said, or too much."""
    if (bench is None) == (on is None):
        raise UserError("plan: give --bench FILE, of a measurement on such a machine, or --on HARDWARE; one of them")
    if documents is None and tokens is None:
        raise UserError("plan: nothing says how much there is; give --documents or --tokens")
    if bench is not None:
        if model is not None or vectors:
            raise UserError("plan: --model and --vectors go with --on; a measurement has its model and output")
        rates = measured_rates(read_bench(bench))
    else:
        assert on is not None
        if tokens_per_document is None and documents and tokens:
            tokens_per_document = tokens / documents
        if tokens_per_document is None:
            raise UserError("plan: with --on, give --tokens-per-document: attention's cost grows with it")
        rates = estimated(hardware(on), shape(model or "base"), tokens_per_document, vectors=vectors)
    each = tokens_per_document or rates.tokens_per_document
    if documents is None or tokens is None:
        if not each or each <= 0:
            raise UserError("plan: tokens a document: got 0, expected a number above it")
        documents, tokens = documents or (tokens or 0) / each, tokens or (documents or 0) * each
    rows = shard_rows or rows_of_a_shard(rates, documents, max(1.0, tokens / max(1.0, documents)))
    amount = Amount(documents=documents, tokens=tokens, shard_rows=rows, known=known)
    found = estimate(rates, amount, machines=machines, hours=hours, price=price)
    if as_json:
        console.print_json(json.dumps({**asdict(amount), **asdict(found), **asdict(rates)}))
    else:
        show_estimate(rates, amount, found, console)


def rows_of_a_shard(rates: Rates, documents: float, tokens_per_document: float) -> int:
    """Documents in a shard, about, as a run cuts them: a minute's of an encoder, on a GPU or a core."""
    encoders = 1 if rates.on_gpu else max(1, rates.cores)
    minute = MINUTE * rates.tokens_per_second / encoders / tokens_per_document
    return max(FEWEST_ROWS, min(SHARD_ROWS, int(max(minute, documents / MOST))))


def shape(model: str) -> XLMRobertaConfig:
    """`base`, `large`, or a checkpoint's."""
    return SHAPES[model] if model in SHAPES else XLMRobertaConfig.from_dict(read_config(resolve(model)))


def show_estimate(rates: Rates, amount: Amount, found: Estimate, console: Console) -> None:
    kind = "GPU" if rates.on_gpu else "machine"
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    rows = [
        ("work", f"{amount.documents:,.0f} documents, {amount.tokens:,.0f} tokens"),
        *([("of which is known", f"{amount.known:.0%}")] if amount.known else []),
        (f"{kind}s", f"{found.machines:,}"),
        ("rate", f"{found.tokens_per_second:,.0f} tokens/s"),
        ("time", duration(found.seconds)),
        (f"{kind} hours", f"{found.machine_hours:,.2f}"),
        *([("cost", f"{found.cost:,.2f}")] if found.cost is not None else []),
        (f"tokenizer cores a {kind}", f"{found.tokenizer_cores:.1f}"),
        ("of what one driver drives", f"{found.driver:.0%}"),
        ("shards", f"{found.shards:,} of {amount.shard_rows:,} documents"),
        ("requests to the output's store", f"{found.requests:,}"),
        ("which S3 charges with", f"{found.request_cost:,.2f} USD"),
        ("output", size(found.output_bytes)),
    ]
    for row in rows:
        table.add_row(*row)
    console.print(table)
    if found.short:
        console.print(
            f"a {kind} with {rates.cores} cores lacks {found.short:.1f} for its tokenizers, which are the limit then"
        )
    if found.driver >= 1:
        console.print(
            f"one driver commits about {DRIVER_SHARDS:g} shards a second, which is the limit then: larger shards "
            f"(cluster.shard_rows, over {amount.shard_rows:,}) lift it"
        )
    for line in rates.sources:
        console.print(line)


def size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1000
    raise AssertionError
