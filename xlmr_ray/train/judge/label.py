"""`xlmr-ray label`: documents drawn from a corpus or a published table, labelled by a large model, kept as Parquet.

A folder has `_sample.parquet`, what was drawn; `_answers.jsonl`, a line an answer as soon as it is there, so that a
call that is killed costs no answer twice; and what these make: `labels.parquet` for a training, `_left_out.parquet`
with the documents that have no label and why, `_label.json` with counts, tokens and agreement.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from xlmr_ray.errors import Interrupted, JobFailed, UserError
from xlmr_ray.text.plural import plural
from xlmr_ray.text.progress_line import ProgressLine
from xlmr_ray.train.judge.ask import Judge, Stopped
from xlmr_ray.train.judge.job import JudgeSection, LabelJob, plainly
from xlmr_ray.train.judge.kept import LabelOutcome, gather, report_json, write_parquet, write_whole
from xlmr_ray.train.judge.replies import Reply, question, replies_of, reply_of
from xlmr_ray.train.judge.sample import draw_documents
from xlmr_ray.train.state import identity_of, reason
from xlmr_ray.train.stop import stop_asked

SAMPLE, ANSWERS, REPORT = "_sample.parquet", "_answers.jsonl", "_label.json"
# Keys of a job that change no answer.
NO_MATTER = {"url", "api_key_env", "concurrency", "timeout", "patience", "price", "known"}
# So many answers in a row without one that is a label: the prompt or the options are wrong, and each costs.
HOPELESS = 20


FilesOf = Callable[[str], list[str]]


class TableReader(Protocol):
    """What reads inputs in turn: see `batch/input/whole.py`, which stands to the right of this room."""

    def __call__(
        self, path: Sequence[str], *, format: str, text: dict[str, str], keep: Sequence[str]
    ) -> Iterator[pa.Table]: ...


def label(job: LabelJob, read: TableReader, published: FilesOf, display: ProgressLine) -> LabelOutcome:
    """Labels, or goes on with it where it stopped. `published` gives the files of a job's output. Raises UserError, and
    JobFailed with what was done kept.
    """
    if "://" in job.output.path:
        raise UserError(f"output.path: {job.output.path}: expected a folder of this machine; copy it from there")
    folder = Path(job.output.path).expanduser()
    identity = identity_of(
        {
            "input": job.input.model_dump(),
            "sample": job.sample.model_dump(),
            "judge": job.judge.model_dump(exclude=NO_MATTER),
            "label": job.output.label,
        }
    )
    judge = Judge.of(job.judge)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "_lock", timeout=0):
            check_maker(folder, identity)
            return label_in(job, folder, identity, judge, read, published, display)
    except Timeout:
        raise UserError(f"output.path: {folder}: another call labels there now; wait for its end") from None
    except OSError as error:
        raise JobFailed(f"{folder}: cannot be written ({reason(error)}); what was answered before is kept") from None
    finally:
        judge.client.close()


def check_maker(folder: Path, identity: str) -> None:
    """Raises UserError for a folder that another job made, or none."""
    if not (folder / REPORT).exists():
        if there := [
            path.name for path in folder.iterdir() if path.name not in ("_lock", SAMPLE) and path.name[0] != "."
        ]:
            raise UserError(f"output.path: {folder} has other files ({min(there)}); name another folder")
        return
    try:
        maker = json.loads((folder / REPORT).read_text("utf-8"))["identity"]
    except (OSError, ValueError, LookupError, TypeError):
        raise UserError(f"output.path: {folder / REPORT} is not one of this command's; name another folder") from None
    if maker != identity:
        raise UserError(f"output.path: {folder} was made by another job; name another one or remove it")


def label_in(
    job: LabelJob,
    folder: Path,
    identity: str,
    judge: Judge,
    read: TableReader,
    published: FilesOf,
    display: ProgressLine,
) -> LabelOutcome:
    """What `label` does in a folder that is its own."""
    drawn: dict[str, Any]
    if (folder / REPORT).exists():
        drawn = json.loads((folder / REPORT).read_text("utf-8"))["drawn"]
    else:
        drawn = keep_sample(job, folder, read, published)
        write_whole(folder / REPORT, report_json({"identity": identity, "drawn": drawn}))
    rows = pq.read_table(folder / SAMPLE)
    replies = replies_of(folder / ANSWERS)
    there = {(one.row, one.turn) for one in replies}
    every = ((row, turn) for turn in range(job.judge.repeat) for row in range(len(rows)))
    left = [one for one in every if one not in there]
    display.say(
        f"{plural(len(rows), 'document')} drawn of {drawn['seen']:,}"
        + (f", {drawn['skipped']:,} have no text" if drawn["skipped"] else "")
        + (f"; {plural(len(replies), 'answer')} there" if replies else "")
    )
    failed: JobFailed | None = None
    if left:
        failed = ask_all(job.judge, rows, left, replies, folder / ANSWERS, judge, display)
    report = {"identity": identity, "drawn": drawn, **gather(job, rows, replies, folder)}
    write_whole(folder / REPORT, report_json(report))
    if failed is not None:
        done = f"{len(replies):,} of {len(rows) * job.judge.repeat:,} answers are kept in {folder}"
        raise type(failed)(f"{failed}; {done}, the same command goes on from there")
    return LabelOutcome(folder, report)


def keep_sample(job: LabelJob, folder: Path, read: TableReader, published: FilesOf) -> dict[str, Any]:
    """Draws the documents and keeps them. Returns how many there were."""
    given = job.input
    path = given.path if given.path is not None else published(given.published or "")
    own = ["source", "row"] if given.published is not None else []
    ranked = [job.sample.ranked_by] if job.sample.ranked_by is not None else []
    keep = [*given.keep, *own, *ranked]
    found = draw_documents(read(path, format=given.format, text=given.roles, keep=keep), job.sample)
    rows = found.rows
    places = {"source": rows["source" if own else "_source"], "row": rows["row" if own else "_row"]}
    columns = {name: rows[name] for name in dict.fromkeys([*given.roles, *given.keep])}
    most = job.judge.max_chars
    texts = zip(*(rows[role].to_pylist() for role in given.roles), strict=True)
    truncated = [most is not None and any(len(text) > most for text in own) for own in texts]
    table = pa.table({**places, **columns, "judge_truncated": pa.array(truncated, pa.bool_())})
    write_parquet(folder / SAMPLE, table)
    return {"seen": found.seen, "skipped": found.skipped, "documents": len(table), "truncated": sum(truncated)}


def ask_all(
    section: JudgeSection,
    rows: pa.Table,
    left: Sequence[tuple[int, int]],
    replies: list[Reply],
    journal: Path,
    judge: Judge,
    display: ProgressLine,
) -> JobFailed | None:
    """Asks for what is left; each answer goes to `replies` and the journal as it comes. Returns what ended it before
    its end, when the answers under way were waited for.
    """
    texts = {name: rows[name].to_pylist() for name in ("text", "text_pair") if name in rows.column_names}
    known = {plainly(name): name for name in section.labels}

    def one(row: int, turn: int) -> Reply:
        answer = judge.ask(question(section, {name: column[row] for name, column in texts.items()}))
        return reply_of(row, turn, answer, known)

    failed: JobFailed | None = None
    todo, total = iter(left), len(replies) + len(left)
    started, useless = time.monotonic(), 0
    pool = ThreadPoolExecutor(section.concurrency)
    running: set[Future[Reply]] = set()
    more = True
    try:
        with stop_asked() as asked, journal.open("a", encoding="utf-8") as file:
            while more or running:
                while more and len(running) < section.concurrency:
                    following = next(todo, None)
                    more = following is not None
                    if following is not None:
                        running.add(pool.submit(one, *following))
                done, running = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
                for future in done:
                    try:
                        reply = future.result()
                    except Stopped:
                        continue
                    except JobFailed as error:
                        failed = failed or error
                        continue
                    replies.append(reply)
                    file.write(json.dumps(vars(reply), ensure_ascii=False) + "\n")
                    file.flush()
                    useless = useless + 1 if reply.label is None else 0
                if done:
                    display.show(len(replies), total, *pace(replies, total, time.monotonic() - started, len(left)))
                if useless >= HOPELESS and failed is None:
                    failed = hopeless(replies[-useless:])
                if asked.is_set() and failed is None:
                    failed = Interrupted("stopped")
                if failed is not None:
                    more = False
                    judge.stop.set()
    finally:
        judge.stop.set()
        pool.shutdown(wait=False, cancel_futures=True)
    return failed


def hopeless(replies: Sequence[Reply]) -> JobFailed:
    whys = ", ".join(f"{count} {why}" for why, count in Counter(one.why for one in replies).most_common())
    return JobFailed(
        f"none of the last {len(replies)} answers is a label ({whys}); see judge.prompt, judge.labels, judge.options"
    )


def pace(replies: Sequence[Reply], total: int, seconds: float, left: int) -> tuple[str, float]:
    """For the progress line: figures, and the seconds that are left."""
    done = left - (total - len(replies))
    rate = done / max(seconds, 1e-9)
    labels = sum(one.label is not None for one in replies)
    tokens = sum(one.prompt_tokens + one.completion_tokens for one in replies)
    return f"{labels:,} labels · {tokens:,} tokens · {rate:.1f} answers/s", (total - len(replies)) / max(rate, 1e-9)
