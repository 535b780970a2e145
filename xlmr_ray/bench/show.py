"""A measurement in the terminal, and its chart as a picture."""

from html import escape
from pathlib import Path

from rich.bar import Bar
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from xlmr_ray.bench.result import Bench
from xlmr_ray.bench.shares import NAMES
from xlmr_ray.engine.cpu_precision import kernels_hint, precision_hint
from xlmr_ray.model.kernels.library import cpu_capabilities

COLORS = {"products": "#3366cc", "attention": "#dc7a28", "quantizing": "#8a5fb5", "rest": "#8c8c8c"}
WIDTH, HEIGHT, LEFT = 640, 30, 110


def print_bench(bench: Bench, console: Console) -> None:
    """Prints all of it."""
    machine, work = bench.machine, bench.work
    console.print(
        f"{machine.device}, {machine.cpus} cores; {work.model}, {', '.join(work.tasks)}, "
        f"{work.quantization or work.dtype}; {work.documents:,} documents of {work.tokens / work.sequences:.0f} tokens",
        highlight=False,
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False)
    for name in ("", "documents/s", "tokens/s", "spread"):
        table.add_column(name, justify="left" if not name else "right")
    for name, rate in (
        ("tokenizing, one core", bench.tokenizing),
        (f"engine, {bench.encoding.workers} encoder{'s' * (bench.encoding.workers > 1)}", bench.encoding),
    ):
        table.add_row(name, f"{rate.documents_per_second:,.1f}", f"{rate.tokens_per_second:,.0f}", f"{rate.spread:.2f}")
    each = work.documents / work.tokens
    table.add_row("ceiling of the matrix rate", f"{bench.ceiling * each:,.1f}", f"{bench.ceiling:,.0f}", "")
    if bench.pipeline is not None:
        steady = bench.pipeline.steady_tokens_per_second
        table.add_row("pipeline with Ray, steady", f"{steady * each:,.1f}", f"{steady:,.0f}", "")
    console.print(table)
    console.print(
        f"matrix rate {machine.matrix / 1e9:,.0f} GFLOP/s"
        + (
            f" (in eight bits {machine.matrix_products / 1e9:,.0f})"
            if machine.matrix_products != machine.matrix
            else ""
        )
        + f", the engine at {bench.utilization:.0%} of the ceiling; padding {bench.padding:.2%}; "
        f"tokenizers want {bench.tokenizer_cores:.2f} cores; loading took {bench.load_seconds:.1f} s",
        highlight=False,
        soft_wrap=True,
    )
    there = {} if machine.on_gpu else cpu_capabilities()
    for hint in (precision_hint(work.dtype, work.quantization, there), kernels_hint(there)):
        if hint:
            console.print(hint, highlight=False, soft_wrap=True)
    if bench.pipeline is not None:
        run = bench.pipeline
        console.print(
            f"a run of {run.documents:,} documents took {run.seconds:.1f} s, its first shard was there after "
            f"{run.first_commit_seconds:.1f} s; steady, it is at "
            f"{run.steady_tokens_per_second / bench.encoding.tokens_per_second:.0%} of the engine without Ray",
            highlight=False,
            soft_wrap=True,
        )
    console.print(chart(bench))


def chart(bench: Bench) -> RenderableType:
    """Where an encoder's time goes, a bar each."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for name in (name for name in NAMES if bench.shares[name] > 0):
        bar = Bar(1.0, 0.0, bench.shares[name], width=40, color=COLORS[name])
        table.add_row(name, bar, f"{bench.shares[name]:.1%}")
    return Group(Text("an encoder's time"), table)


def chart_svg(bench: Bench) -> str:
    """The chart as a picture."""
    shown = [name for name in NAMES if bench.shares[name] > 0]
    title = (
        f"{bench.work.model}, {bench.work.quantization or bench.work.dtype}, {bench.machine.device}: an encoder's time"
    )
    height = HEIGHT * (len(shown) + 2)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        'font-size="13">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="10" y="20" font-weight="bold">{escape(title)}</text>',
    ]
    for row, name in enumerate(shown):
        top, length = HEIGHT * (row + 1), bench.shares[name] * (WIDTH - LEFT - 80)
        lines += [
            f'<text x="10" y="{top + 19}">{name}</text>',
            f'<rect x="{LEFT}" y="{top + 5}" width="{length:.1f}" height="{HEIGHT - 10}" fill="{COLORS[name]}"/>',
            f'<text x="{LEFT + length + 8:.1f}" y="{top + 19}">{bench.shares[name]:.1%}</text>',
        ]
    foot = (
        f"{bench.encoding.tokens_per_second:,.0f} tokens/s, {bench.utilization:.0%} of what the machine's matrix rate "
        f"of {bench.machine.matrix / 1e9:,.0f} GFLOP/s allows"
    )
    lines += [f'<text x="10" y="{height - 10}">{escape(foot)}</text>', "</svg>"]
    return "\n".join(lines) + "\n"


def save_chart(bench: Bench, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(chart_svg(bench), "utf-8")
