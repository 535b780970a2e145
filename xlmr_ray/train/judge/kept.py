"""What a labelling leaves in its folder: the labels, the documents without one and why, counts, tokens, agreement."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from xlmr_ray.text.progress_line import say
from xlmr_ray.train.judge.job import LabelJob, plainly
from xlmr_ray.train.judge.replies import Reply

LABELS, LEFT_OUT = "labels.parquet", "_left_out.parquet"
DISAGREED = "disagreed"


@dataclass(frozen=True)
class LabelOutcome:
    """Where the labels are, and the report."""

    folder: Path
    report: Mapping[str, Any]


def gather(job: LabelJob, rows: pa.Table, replies: Sequence[Reply], folder: Path) -> dict[str, Any]:
    """Writes what the answers make, and returns counts, tokens, cost and agreement."""
    answers: dict[int, list[Reply]] = {}
    for reply in sorted(replies, key=lambda one: (one.row, one.turn)):
        answers.setdefault(reply.row, []).append(reply)
    names: dict[int, str] = {}
    whys: dict[int, str] = {}
    equal = judged = 0
    for row, own in answers.items():
        if len(own) < job.judge.repeat:
            continue
        why = next((one.why for one in own if one.label is None), "")
        labels = {one.label for one in own}
        judged += not why
        equal += not why and len(labels) == 1
        if why or len(labels) > 1:
            whys[row] = why or DISAGREED
        else:
            names[row] = own[0].label or ""
    table = rows.take(pa.array(list(names), pa.int64()))
    table = table.append_column(job.output.label, pa.array(list(names.values()), pa.string()))
    write_parquet(folder / LABELS, table)
    left = rows.select(["source", "row"]).take(pa.array(list(whys), pa.int64()))
    left = left.append_column("why", pa.array(list(whys.values()), pa.string()))
    said = [[one.answer for one in answers[row]] for row in whys]
    write_parquet(folder / LEFT_OUT, left.append_column("answers", pa.array(said, pa.list_(pa.string()))))
    tokens = {
        "prompt": sum(one.prompt_tokens for one in replies),
        "completion": sum(one.completion_tokens for one in replies),
    }
    price = job.judge.price
    cost = None if price is None else sum(tokens[kind] * getattr(price, kind) for kind in tokens) / 1e6
    agreement: dict[str, Any] = {}
    if job.judge.repeat > 1:
        agreement["repeats"] = {"documents": judged, "share": equal / judged if judged else None}
    if job.judge.known is not None:
        people = zip(table[job.judge.known].to_pylist(), names.values(), strict=True)
        same = [plainly(str(one)) == plainly(own) for one, own in people if one is not None]
        agreement["known"] = {"documents": len(same), "share": sum(same) / len(same) if same else None}
    return {
        "name": job.name,
        "url": job.judge.url,
        "judge": job.judge.model_dump(exclude={"url", "api_key_env"}),
        "sample": job.sample.model_dump(),
        "answers": len(replies),
        "labelled": len(names),
        "labels": dict(Counter(names.values()).most_common()),
        "left_out": dict(Counter(whys.values()).most_common()),
        "unanswered": len(rows) - len(names) - len(whys),
        "tokens": tokens,
        "cost": cost,
        "agreement": agreement,
    }


def report_json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def write_whole(path: Path, content: bytes) -> None:
    """Whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    part.replace(path)


def write_parquet(path: Path, table: pa.Table) -> None:
    """Whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    pq.write_table(table, part)
    part.replace(path)


def print_outcome(found: LabelOutcome, console: Console) -> None:
    """What the command prints at its end."""
    report = found.report
    labels = ", ".join(f"{name} {count:,}" for name, count in report["labels"].items())
    say(console, f"labelled    {report['labelled']:,}{f' ({labels})' if labels else ''}")
    if report["left_out"]:
        whys = ", ".join(f"{why} {count:,}" for why, count in report["left_out"].items())
        say(console, f"left out    {sum(report['left_out'].values()):,} ({whys}): see {found.folder / LEFT_OUT}")
    if report["drawn"]["truncated"]:
        say(console, f"cut         {report['drawn']['truncated']:,} texts to judge.max_chars (judge_truncated)")
    tokens = report["tokens"]
    cost = "" if report["cost"] is None else f", cost {report['cost']:,.4g}"
    say(console, f"tokens      {tokens['prompt']:,} read, {tokens['completion']:,} written{cost}")
    for kind, name in (("repeats", "the same answer each time"), ("known", "the label that people gave")):
        if (one := report["agreement"].get(kind)) and one["share"] is not None:
            say(console, f"agreement   {one['share']:.1%} of {one['documents']:,}: {name}")
    say(console, f"labels      {found.folder / LABELS}")
