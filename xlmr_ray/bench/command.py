"""`xlmr-ray bench`: the call as users make it."""

from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from xlmr_ray.batch.job import Job, TaskSection
from xlmr_ray.bench.measure import load, measure, save
from xlmr_ray.bench.pipeline import with_pipeline
from xlmr_ray.bench.quality import quality, show_quality
from xlmr_ray.bench.sample import take_sample
from xlmr_ray.bench.show import print_bench, save_chart
from xlmr_ray.errors import UserError
from xlmr_ray.tasks.embedding import Embedding
from xlmr_ray.tasks.vector_precision import write_ranges


def bench_command(
    job: Job,
    *,
    documents: int,
    rounds: int,
    encoders: int | None,
    pipeline: bool,
    output: Path,
    chart: Path | None,
    console: Console,
    say: Callable[[str], None],
) -> None:
    """Measures, prints, and writes `output` and the `chart`."""
    result = measure(job, most=documents, rounds=rounds, encoders=encoders, say=say)
    if pipeline:
        say("a run with Ray")
        result = with_pipeline(result, job, take_sample(job, documents))
    save(result, output)
    print_bench(result, console)
    if chart is not None:
        save_chart(result, chart)
    console.print(f"written to {output}" + (f" and {chart}" if chart else ""))


def ranges_command(job: Job, *, documents: int, output: Path, console: Console) -> None:
    """Writes the smallest and the largest number of each dimension of the job's vectors over a sample, for precision
    int8 and uint8. Raises UserError where the job has not exactly one embedding task.
    """
    if [section.task for section in job.tasks].count("embedding") != 1:
        raise UserError(f"{job.name}: --ranges needs a job with one embedding task")
    kept = [section for section in job.tasks if section.task == "embedding"]
    options = {name: value for name, value in kept[0].options.items() if name not in ("precision", "ranges")}
    section = TaskSection(task="embedding", model=kept[0].model, **options)
    floats = job.model_copy(update={"tasks": [section]})
    sample = take_sample(floats, documents)
    (found,) = load(floats, sample).outputs(sample.encoded)
    vectors = found.table["embedding"].combine_chunks().flatten().to_numpy().reshape(found.table.num_rows, -1)
    task = sample.tasks[0]
    assert isinstance(task, Embedding)
    write_ranges(output, vectors, normalized=task.normalized)
    kind = "normalized vectors" if task.normalized else "vectors that are not normalized"
    console.print(f"ranges of {vectors.shape[1]} dimensions over {len(vectors)} {kind} written to {output}")


def quality_command(job: Job, *, documents: int, console: Console, say: Callable[[str], None]) -> None:
    """Prints what fewer bits cost the job's answers."""
    show_quality(quality(job, most=documents, say=say), console)
