"""`training.html`: a training as one page beside its checkpoint, made of `training.json` only."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from xlmr_ray.report_page import plots
from xlmr_ray.report_page.exhibits import Card, Exhibit, PageSection, PageTable, as_yaml, page_environment
from xlmr_ray.report_page.plots import Curve, short_number
from xlmr_ray.text.duration import duration
from xlmr_ray.text.plural import plural

NO_MEASURES = ("step", "epoch")
POINTS = 200  # most of a line of losses; each is the mean of the steps that it stands for
MOST_ROWS = 60


def training_page(record: Mapping[str, Any]) -> str:
    """The page, HTML, of what `training.json` holds."""
    template = page_environment(Path(__file__).parent).get_template("training.html.jinja")
    job = record["job"]
    return template.render(
        record=record,
        job_name=job["name"],
        cards=training_cards(record),
        sections=list(training_sections(record)),
        job=as_yaml(job),
    )


def training_cards(record: Mapping[str, Any]) -> Iterator[Card]:
    rows, losses = record["rows"], record["losses"]
    more = f"{rows['skipped']:,} skipped" if rows["skipped"] else ""
    yield Card("rows", f"{rows['train']:,}", more)
    yield Card("steps", f"{len(losses):,}", plural(len(record["history"]), "epoch"))
    yield Card("time", duration(record["seconds"]))
    yield Card("loss", f"{losses[-1]:.4f}", f"at first {losses[0]:.4f}")
    if rows["validation"]:
        best = best_epoch(record)
        for name, value in best.items():
            if name not in NO_MEASURES:
                yield Card(name.replace("_", " "), f"{value:.4f}", f"of {rows['validation']:,} held-out rows")


def best_epoch(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """What was measured of the weights that were written."""
    found: Mapping[str, Any] = record["history"][-1 if record["best"] is None else record["best"]]
    return found


def training_sections(record: Mapping[str, Any]) -> Iterator[PageSection]:
    yield PageSection("How it went", tuple(loss_exhibits(record)))
    held = record.get("held") or {}
    found = []
    if held.get("languages"):
        found.append(language_exhibit(held["languages"]))
    if "confusion" in held:
        found.append(confusion_exhibit(**held["confusion"]))
    if "calibration" in held:
        found.append(calibration_exhibit(held["calibration"]))
    if found:
        yield PageSection(f"On {plural(held['rows'], 'held-out row')}", tuple(found))
    made = {key: record[key] for key in ("identity", "head", "torch", "machine")}
    rows = tuple((name, str(value)) for name, value in made.items())
    yield PageSection("What ran", (Exhibit("Training", None, PageTable(("what", ""), rows, frozenset())),))


def loss_exhibits(record: Mapping[str, Any]) -> Iterator[Exhibit]:
    steps = smoothed_losses(record["losses"])
    history = record["history"]
    lines = [Curve("training", steps)]
    if "loss" in history[-1]:
        lines.append(Curve("held out", [(one["step"], one["loss"]) for one in history]))
    title = "Loss by step"
    rows = tuple((f"{step:,.0f}", f"{loss:.4f}") for step, loss in steps)
    note = f"Each point is the mean of {plural(per_point(record['losses']), 'step')}." if len(steps) > 1 else ""
    table = PageTable(("step", "loss"), rows, frozenset({0, 1}))
    yield Exhibit(title, plots.curves(lines, across="steps", up="loss", title=title), table, note)
    if names := [name for name in history[-1] if name not in NO_MEASURES]:
        cells = tuple(
            (str(one["epoch"]), f"{one['step']:,}", *(f"{one[name]:.4f}" for name in names)) for one in history
        )
        head = ("epoch", "step", *names)
        best = "" if record["best"] is None else f"The weights are those after epoch {best_epoch(record)['epoch']}."
        yield Exhibit("After each epoch", None, PageTable(head, cells, frozenset(range(len(head)))), best)


def per_point(losses: Sequence[float]) -> int:
    return -(-len(losses) // POINTS)


def smoothed_losses(losses: Sequence[float]) -> list[tuple[float, float]]:
    """Means of so many steps each, at the last of them."""
    size = per_point(losses)
    parts = [losses[start : start + size] for start in range(0, len(losses), size)]
    return [(min((i + 1) * size, len(losses)), sum(part) / len(part)) for i, part in enumerate(parts)]


def language_exhibit(found: Sequence[Mapping[str, Any]]) -> Exhibit:
    names = list(found[0]["measures"])
    largest = sorted(sorted(found, key=lambda one: -one["rows"])[:MOST_ROWS], key=lambda one: one["language"])
    rows = tuple(
        (one["language"] or "none", f"{one['rows']:,}", *(figure_text(one["measures"][name]) for name in names))
        for one in largest
    )
    head = ("language", "rows", *names)
    note = f"The largest of {len(found)}." if len(found) > MOST_ROWS else ""
    return Exhibit("By language", None, PageTable(head, rows, frozenset(range(1, len(head)))), note)


def figure_text(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"


def confusion_exhibit(labels: Sequence[str], counts: Sequence[Sequence[int]]) -> Exhibit:
    shares = [[count / max(1, sum(line)) for count in line] for line in counts]
    title = "Labels and what was found"
    rows = tuple(
        (label, found, f"{count:,}", f"{count / max(1, sum(line)):.1%}")
        for label, line in zip(labels, counts, strict=True)
        for found, count in zip(labels, line, strict=True)
        if count
    )
    note = "A line a label; the stronger, the more of its rows were given the column's."
    table = PageTable(("label", "found", "rows", "share"), rows, frozenset({2, 3}))
    return Exhibit(title, plots.heatmap(labels, labels, shares, down="label", title=title), table, note)


def calibration_exhibit(found: Mapping[str, Any]) -> Exhibit:
    points = [(one["mean"], one["right"]) for one in found["bins"]]
    lines = [Curve("found", points), Curve("as sure as right", [(0.0, 0.0), (1.0, 1.0)])]
    title = "How sure and how right"
    rows = tuple((f"{one['mean']:.3f}", f"{one['right']:.3f}", short_number(one["scores"])) for one in found["bins"])
    note = f"Expected calibration error {found['error']:.4f}, without a temperature: see xlmr-ray calibrate."
    plot = plots.curves(lines, across="mean score", up="share right", title=title, unit=True)
    return Exhibit(title, plot, PageTable(("mean score", "share right", "scores"), rows, frozenset({0, 1, 2})), note)
