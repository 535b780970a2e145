"""`xlmr-ray`: the command line. Exit codes: 0 done, 1 the job failed, 2 the call or the job file is wrong, 130
interrupted.
"""

import os
import signal
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from xlmr_ray.errors import JobFailed, UserError
from xlmr_ray.streams import INTERRUPTED, ends_in_one_line, open_standard_streams
from xlmr_ray.text.plural import plural
from xlmr_ray.text.printable import printable

if TYPE_CHECKING:
    from xlmr_ray.train.job import DataSection

app = typer.Typer(
    name="xlmr-ray",
    help="XLM-RoBERTa over many documents: exactly-once batch scoring on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"xlmr-ray {version('xlmr-ray')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """XLM-RoBERTa over many documents: exactly-once batch scoring on Ray."""


Output = Annotated[str, typer.Argument(metavar="OUT", help="The output folder or bucket of a job.")]
FileFormat = Literal["lines", "json", "sql"]
AtLeastOnce = Annotated[
    bool, typer.Option("--at-least-once", help="Use a store without conditional writes; a row may then be there twice.")
]


JobName = Annotated[str, typer.Argument(metavar="JOB", help="A job file (YAML), or the name of a task.")]
Input = Annotated[list[str] | None, typer.Option(help="File, folder, glob or URL to read; may be given again.")]
Model = Annotated[str | None, typer.Option(help="Folder, URL, hub id or embedded:mini.")]
Set = Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Any key of the job file, dotted.")]
Labelled = Annotated[list[str], typer.Option(help="File, folder, glob or URL of labelled rows; may be given again.")]
Column = Annotated[
    list[str] | None, typer.Option(metavar="KEY=NAME", help="The column of text, text_pair, label, …, or format.")
]
TaskOption = Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="An option of the task.")]
SkipBadRows = Annotated[bool, typer.Option("--skip-bad-rows", help="Leave out rows that cannot be used.")]


@app.command()
def run(
    job: JobName,
    input: Input = None,
    output: Annotated[str | None, typer.Option(help="Folder or URL to write to.")] = None,
    model: Model = None,
    set: Set = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Only the first N documents: another run than that of all.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only check the job and say what it would read and write.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, only the summary.")] = False,
    wait: Annotated[
        float, typer.Option(min=0, help="Seconds to wait while another launch drives the same run; 0: end at once.")
    ] = 86400.0,
    at_least_once: AtLeastOnce = False,
) -> None:
    """Run a job, or go on with it where it stopped."""
    from xlmr_ray.batch.job import job_of_call

    checked = job_of_call(job, input=input, output=output, model=model, limit=limit, settings=set)
    if dry_run:
        from xlmr_ray.batch.dry_run import dry_run as look

        look(checked, Console(), at_least_once=at_least_once)
        return
    from xlmr_ray.batch.observe.printing import print_run_summary
    from xlmr_ray.batch.run import run_job

    outcome = run_job(checked, console=Console(stderr=True), quiet=quiet, at_least_once=at_least_once, wait=wait)
    print_run_summary(outcome, Console())


@app.command()
def finetune(
    job: Annotated[Path, typer.Argument(metavar="JOB", help="A job file (YAML).")],
    model: Model = None,
    output: Annotated[str | None, typer.Option(help="Folder to write the checkpoint to.")] = None,
    set: Set = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, only the summary.")] = False,
) -> None:
    """Train a head, or all of a checkpoint, on labelled rows; or go on with it where it stopped."""
    from xlmr_ray.batch.input.whole import read_whole
    from xlmr_ray.batch.job import with_settings
    from xlmr_ray.text.progress_line import ProgressLine
    from xlmr_ray.train.display import print_train_summary
    from xlmr_ray.train.finetune import finetune as trained
    from xlmr_ray.train.job import check_finetune_job, read_finetune_job

    content = read_finetune_job(job) | ({"model": model} if model else {})
    content |= {"output": {"path": output}} if output else {}
    checked = check_finetune_job(with_settings(content, set, "--set"), str(job))
    on_workers = None
    if checked.cluster.workers > 1:
        from xlmr_ray.batch.train_workers import train_on_workers

        on_workers = train_on_workers
    with ProgressLine(Console(stderr=True), "steps", quiet=quiet) as display:
        outcome = trained(checked, read_whole, display, on_workers)
    print_train_summary(outcome.folder, outcome.progress, Console())


@app.command()
def label(
    job: Annotated[Path, typer.Argument(metavar="JOB", help="A job file (YAML).")],
    output: Annotated[str | None, typer.Option(help="Folder to write the labels to.")] = None,
    set: Set = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, only the summary.")] = False,
) -> None:
    """Draw documents and have a large model label them, for a training; or go on with it where it stopped."""
    from xlmr_ray.batch.input.whole import iter_whole
    from xlmr_ray.batch.job import with_settings
    from xlmr_ray.batch.ledger.results import result_files
    from xlmr_ray.text.progress_line import ProgressLine
    from xlmr_ray.train.judge.job import check_label_job, read_label_job
    from xlmr_ray.train.judge.kept import print_outcome
    from xlmr_ray.train.judge.label import label as labelled

    content = read_label_job(job)
    if output:
        section = content.get("output")
        content = {**content, "output": {**(section if isinstance(section, dict) else {}), "path": output}}
    checked = check_label_job(with_settings(content, set, "--set"), str(job))
    with ProgressLine(Console(stderr=True), "answers", quiet=quiet) as display:
        outcome = labelled(checked, iter_whole, result_files, display)
    print_outcome(outcome, Console())


@app.command()
def evaluate(
    task: Annotated[str, typer.Argument(metavar="TASK", help="A task, such as text-classification.")],
    data: Labelled,
    model: Annotated[
        list[str] | None, typer.Option(help="Folder, URL, hub id or embedded:mini; a second one is compared.")
    ] = None,
    column: Column = None,
    by: Annotated[list[str] | None, typer.Option(help="A column by whose values to measure, too.")] = None,
    option: TaskOption = None,
    resamples: Annotated[int, typer.Option(min=1, help="Draws of the rows for the intervals.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
    skip_bad_rows: SkipBadRows = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """How good a checkpoint, or two of them, are on labelled rows, with confidence intervals."""
    from xlmr_ray.batch.input.whole import read_whole
    from xlmr_ray.batch.job import with_settings
    from xlmr_ray.train.evaluate import evaluate as evaluated
    from xlmr_ray.train.evaluate import print_evaluation

    models = model or ["embedded:mini"]
    if len(models) > 2:
        raise UserError(f"--model: expected one or two, got {len(models)}")
    found = evaluated(
        task,
        models,
        labelled_rows(data, column, skip_bad_rows=skip_bad_rows),
        read_whole,
        by=by or (),
        options=with_settings({}, option, "--option"),
        resamples=resamples,
        seed=seed,
    )
    if as_json:
        typer.echo(found.to_json())
    else:
        print_evaluation(found, Console(soft_wrap=True))


@app.command()
def calibrate(
    task: Annotated[str, typer.Argument(metavar="TASK", help="text-classification or rerank.")],
    model: Annotated[str, typer.Option(help="A checkpoint's folder, into which what is found is written.")],
    data: Labelled,
    column: Column = None,
    precision: Annotated[
        float | None, typer.Option(help="Thresholds, too: of the rows above a label's, this share has the label.")
    ] = None,
    recall: Annotated[
        float | None, typer.Option(help="Instead: of the rows that have the label, this share is above.")
    ] = None,
    option: TaskOption = None,
    skip_bad_rows: SkipBadRows = False,
) -> None:
    """Fit a temperature to labelled rows, so that scores are as sure as they are right, and thresholds for labels."""
    from xlmr_ray.batch.input.whole import read_whole
    from xlmr_ray.batch.job import with_settings
    from xlmr_ray.train.calibrate import calibrate as calibrated
    from xlmr_ray.train.calibrate import print_calibration
    from xlmr_ray.train.thresholds import target_of

    found = calibrated(
        task,
        model,
        labelled_rows(data, column, skip_bad_rows=skip_bad_rows),
        read_whole,
        options=with_settings({}, option, "--option"),
        target=target_of(precision=precision, recall=recall),
    )
    print_calibration(found, Console(soft_wrap=True))


def labelled_rows(data: list[str], column: list[str] | None, *, skip_bad_rows: bool) -> "DataSection":
    """What `evaluate` and `calibrate` read, from their options."""
    from xlmr_ray.batch.job import with_settings
    from xlmr_ray.train.job import DataSection
    from xlmr_ray.validation import checked

    content = {"path": data, "bad_rows": "skip" if skip_bad_rows else "error"}
    return checked(DataSection, with_settings(content, column, "--column"), "--column")


@app.command()
def bench(
    job: JobName,
    input: Input = None,
    model: Model = None,
    set: Set = None,
    documents: Annotated[int, typer.Option(help="How many to measure with, spread over the input.")] = 192,
    rounds: Annotated[int, typer.Option(help="Repetitions; the median counts.")] = 3,
    encoders: Annotated[int | None, typer.Option(help="Encoders at once on a CPU; default: one a core.")] = None,
    pipeline: Annotated[bool, typer.Option("--pipeline", help="Measure a run with Ray, too.")] = False,
    quality: Annotated[bool, typer.Option("--quality", help="Only what fewer bits cost, in one table.")] = False,
    ranges: Annotated[
        Path | None, typer.Option(help="Only the ranges of vectors, for precision int8 and uint8, to this file.")
    ] = None,
    output: Annotated[Path, typer.Option(help="What was found, for `xlmr-ray plan`.")] = Path("bench.json"),
    chart: Annotated[Path | None, typer.Option(help="Where the time goes, as a picture (SVG).")] = None,
) -> None:
    """Measure a job's tokenizer and engine on this machine: rates, the share of what it could do, where time goes."""
    from xlmr_ray.batch.job import job_of_call
    from xlmr_ray.bench.command import bench_command, quality_command, ranges_command

    checked = job_of_call(job, input=input, model=model, settings=set, writes=False)
    console = Console(highlight=False, soft_wrap=True)
    say = Console(stderr=True, highlight=False, soft_wrap=True).print
    if quality:
        quality_command(checked, documents=documents, console=console, say=say)
    elif ranges is not None:
        ranges_command(checked, documents=documents, output=ranges, console=console)
    else:
        bench_command(
            checked,
            documents=documents,
            rounds=rounds,
            encoders=encoders,
            pipeline=pipeline,
            output=output,
            chart=chart,
            console=console,
            say=say,
        )


@app.command()
def plan(
    documents: Annotated[float | None, typer.Option(help="How many there are.")] = None,
    tokens: Annotated[float | None, typer.Option(help="How many there are, of all documents.")] = None,
    tokens_per_document: Annotated[float | None, typer.Option(help="Default: as measured.")] = None,
    bench: Annotated[Path | None, typer.Option(help="What `xlmr-ray bench` wrote on such a machine.")] = None,
    on: Annotated[str | None, typer.Option(metavar="HARDWARE", help="Instead: h100, a100, l4 ...; estimated.")] = None,
    model: Annotated[str | None, typer.Option(help="With --on: base, large, or a checkpoint. Default: base.")] = None,
    vectors: Annotated[bool, typer.Option("--vectors", help="With --on: the output is a vector a document.")] = False,
    machines: Annotated[int | None, typer.Option(help="How many of them, or GPUs. Default: 1.")] = None,
    hours: Annotated[float | None, typer.Option(help="Instead: to be done within so many.")] = None,
    price: Annotated[float | None, typer.Option(help="Of one machine (GPU) for an hour.")] = None,
    shard_rows: Annotated[int | None, typer.Option(help="Documents a shard. Default: as a run cuts them.")] = None,
    known: Annotated[float, typer.Option(metavar="SHARE", help="Not computed: repeats, or by `reuse`.")] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """What a job will take: time, cost, machines, tokenizer cores, shards, requests and storage."""
    from xlmr_ray.bench.sizing.command import plan_command

    plan_command(
        bench=bench,
        on=on,
        model=model,
        documents=documents,
        tokens=tokens,
        tokens_per_document=tokens_per_document,
        machines=machines,
        hours=hours,
        price=price,
        shard_rows=shard_rows,
        known=known,
        vectors=vectors,
        as_json=as_json,
        console=Console(highlight=False, soft_wrap=True),
    )


@app.command()
def demo(output: Annotated[str, typer.Option(help="Folder to write to.")] = "demo-output") -> None:
    """Name the language of each article of the Universal Declaration of Human Rights with the embedded checkpoint."""
    from xlmr_ray.demo import run_demo

    run_demo(output)


@app.command()
def status(
    out: Output,
    run: Annotated[str | None, typer.Option(help="Only this run.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print a JSON object a run.")] = False,
    at_least_once: AtLeastOnce = False,
) -> None:
    """How far the runs in OUT are, and who drives them; from any machine."""
    from xlmr_ray.batch.observe.printing import print_status, status_lines
    from xlmr_ray.batch.store.open import open_store

    store = open_store(out, at_least_once=at_least_once)
    if json:
        for line in status_lines(store, run):
            typer.echo(line)
    else:
        print_status(store, Console(), run)


@app.command()
def files(
    out: Output,
    errors: Annotated[bool, typer.Option("--errors", help="The files of error rows.")] = False,
    format: Annotated[FileFormat, typer.Option(help="A URL a line, a JSON list, or a query for DuckDB.")] = "lines",
    at_least_once: AtLeastOnce = False,
) -> None:
    """The Parquet files that hold the published rows in OUT, for DuckDB, Spark, Polars and others."""
    from xlmr_ray.batch.ledger.results import as_json, as_sql, iter_files

    found = iter_files(out, errors=errors, at_least_once=at_least_once)
    if format == "lines":
        for file in found:
            typer.echo(file)
        return
    for piece in (as_sql if format == "sql" else as_json)(found):
        typer.echo(piece, nl=False)
    typer.echo()


@app.command()
def verify(
    out: Output,
    run: Annotated[str | None, typer.Option(help="A run's id; those of the published table where not given.")] = None,
    at_least_once: AtLeastOnce = False,
) -> None:
    """Read records and files again: every checksum and every count."""
    from xlmr_ray.batch.ledger.published import current
    from xlmr_ray.batch.ledger.verify import verify as verified
    from xlmr_ray.batch.observe.printing import print_report
    from xlmr_ray.batch.store.open import open_store

    store = open_store(out, at_least_once=at_least_once)
    published = None if run else current(store)
    failed = []
    for name in published.runs if published else [run]:
        report = verified(store, name)
        print_report(report, Console())
        if not report.ok:
            failed.append(f"run {report.run_id}: {len(report.problems)} problems")
    if failed:
        raise JobFailed(f"{out}: {', '.join(failed)}")


@app.command()
def report(
    out: Output,
    run: Annotated[str | None, typer.Option(help="A run's id; the published one where not given.")] = None,
    to: Annotated[Path | None, typer.Option(help="Folder on this machine to write to, instead of the run's.")] = None,
    price: Annotated[float | None, typer.Option(min=0, help="Price an hour of all machines together.")] = None,
    at_least_once: AtLeastOnce = False,
) -> None:
    """Make a run's report anew, a page and JSON, and say where it is; of an unfinished run, as far as it is."""
    from xlmr_ray.batch.observe.report.leave import leave_report, save_report
    from xlmr_ray.batch.store.open import open_store

    store = open_store(out, at_least_once=at_least_once)
    where = leave_report(store, run, price=price) if to is None else save_report(store, run, to, price=price)
    Console().print(where, highlight=False, markup=False, soft_wrap=True)


@app.command()
def compact(out: Output, at_least_once: AtLeastOnce = False) -> None:
    """Merge the small files of the published rows in OUT into large ones; `sweep` removes the small ones later."""
    from xlmr_ray.batch.ledger.merge import compact as compacted
    from xlmr_ray.batch.store.open import open_store

    Console().print(str(compacted(open_store(out, at_least_once=at_least_once))), highlight=False)


@app.command()
def sweep(
    out: Output,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list.")] = False,
    hours: Annotated[float, typer.Option(help="In unfinished runs, only files older than this.")] = 24.0,
    at_least_once: AtLeastOnce = False,
) -> None:
    """Remove the files of attempts that crashed or lost."""
    from xlmr_ray.batch.ledger.sweep import sweep as swept
    from xlmr_ray.batch.store.open import open_store

    store = open_store(out, at_least_once=at_least_once)
    console = Console()
    found = swept(store, dry_run=dry_run, older_than=hours * 3600)
    for entry in found:
        console.print(
            f"{'would remove' if dry_run else 'removed'} {store.url(entry.key)}", highlight=False, soft_wrap=True
        )
    total = sum(entry.size for entry in found)
    console.print(f"{plural(len(found), 'file')}, {total:,} bytes", highlight=False)


@app.command()
def serve(
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="A settings file (YAML).")] = None,
    model: Model = None,
    task: Annotated[
        list[str] | None, typer.Option(help="A task; may be given again. Default: the checkpoint's.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 for any that is free.")] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Only print what `serve deploy` and KubeRay take.")
    ] = False,
) -> None:
    """Serve models over HTTP until stopped."""
    from functools import partial

    from xlmr_ray.serve.settings import from_call

    read = partial(from_call, file, model=model, tasks=task or (), host=host, port=port)
    settings = read()
    if print_config:
        import yaml

        from xlmr_ray.serve.launch import serve_config

        print(yaml.safe_dump(serve_config(settings), sort_keys=False, allow_unicode=True), end="")
        return
    from xlmr_ray.serve.session import ended, in_own_session

    in_own_session()
    from xlmr_ray.serve.launch import run_service

    run_service(settings, read, Console(stderr=True, highlight=False, soft_wrap=True).print)
    ended()


def main() -> None:
    """The entry point. A user's mistake is one line on standard error, never a traceback."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    open_standard_streams()
    try:
        with ends_in_one_line():
            for word in sys.argv[1:]:
                if word != printable(word):
                    raise UserError(f"{word}: is not UTF-8; rename the file or folder")
            try:
                app()
            except SystemExit as ended:
                if ended.code == INTERRUPTED:  # typer ends so at ^C, without a word
                    raise KeyboardInterrupt from None
                raise
    except BrokenPipeError:
        # The reader of our output has left, as `head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
