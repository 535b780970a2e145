"""`report.html`: a run's report as one page that asks for nothing from anywhere.

Names of labels, files, columns and jobs are whatever somebody wrote: jinja2 escapes them all, and the page's own policy
forbids scripts and requests.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from xlmr_ray.batch.observe.drift import Drift
from xlmr_ray.batch.observe.report.counts import OTHERS, Counts, Summary
from xlmr_ray.batch.observe.report.gather import RunReport
from xlmr_ray.report_page import plots
from xlmr_ray.report_page.exhibits import Card, Exhibit, PageSection, PageTable, as_yaml, page_environment, when
from xlmr_ray.report_page.plots import Bar, short_number
from xlmr_ray.text.duration import duration
from xlmr_ray.text.plural import plural

MOST_BARS = 20
MOST_GROUPS = 30
MOST_COLUMNS = 36
MOST_SHIFTS = 20
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def report_page(report: RunReport) -> str:
    """The page, HTML."""
    template = page_environment(Path(__file__).parent).get_template("report.html.jinja")
    return template.render(
        report=report,
        cards=headline_cards(report),
        sections=list(page_sections(report)),
        job=as_yaml(report.job),
        when=when,
        plural=plural,
    )


def headline_cards(report: RunReport) -> Iterator[Card]:
    done = report.rows / max(report.active, 1e-9)
    yield Card(
        "documents", f"{report.rows:,}", f"{plural(report.rows_ok, 'row')} and {plural(report.rows_error, 'error')}"
    )
    yield Card("errors", f"{report.rows_error / max(1, report.rows):.2%}", plural(len(report.errors), "code"))
    if report.not_read:
        yield Card("files not read", f"{report.not_read.files:,}", str(report.not_read))
    if report.rows_lost:
        counted = "an estimate, " if report.lost_estimated else ""
        yield Card("lost rows", f"{report.rows_lost:,}", f"{counted}beside an error row a file that cannot be read")
    read = report.tokens + report.repeated
    yield Card("tokens", short_number(report.tokens), f"{read / max(1, report.rows_ok):,.0f} a document")
    if report.repeated:
        why = f"{report.repeated / read:.1%} of what was read: an equal sequence had been computed"
        yield Card("tokens not computed", short_number(report.repeated), why)
    if report.reused:
        same = f"{report.reused / max(1, report.rows):.1%}, whose texts had not changed"
        yield Card("rows from the table before", f"{report.reused:,}", same)
    yield Card("time at work", duration(report.active), f"{when(report.started)} to {when(report.ended)}")
    yield Card("documents a second", short_number(done), "over the time at work")
    yield Card("tokens a second", short_number(report.tokens / max(report.active, 1e-9)), "over the time at work")
    yield Card("padding", f"{report.padding:.1%}", "of what was computed")
    shown: list[int] = []
    for name, counts in report.summary.measures.items():
        if name.endswith("truncated") and counts.total not in shown:
            shown.append(counts.total)
            task = name.removesuffix("truncated").rstrip("_")
            share = counts.total / max(1, report.summary.rows)
            yield Card(f"cut {task}".strip(), f"{share:.1%}", f"{plural(counts.total, 'text')} longer than allowed")
    for device in report.devices:
        if device.utilization is not None:
            yield Card("MFU", f"{device.utilization:.1%}", f"of {short_number(device.peak or 0)}FLOP/s, {device.name}")
    if report.cost is not None:
        yield Card("cost", f"{report.cost:,.2f} {report.currency}", f"at {report.price:g} an hour")


def page_sections(report: RunReport) -> Iterator[PageSection]:
    if report.moments and report.tokens:
        yield PageSection("How fast", tuple(speed(report)))
    if lengths := tuple(lengths_of(report)):
        yield PageSection("How long the documents are", lengths)
    for task in report.tasks:
        prefix = f"{task.name}_".replace("-", "_") if len(report.tasks) > 1 else ""
        if exhibits := tuple(results(report.summary, prefix)):
            yield PageSection(f"What came out: {task.name}", exhibits)
    if report.drift and report.drift.shifts:
        yield PageSection("Against what was scored before", (drifted(report.drift),))
    if report.errors:
        yield PageSection("Errors", (errors_exhibit(report),))
    yield PageSection("What ran", tuple(what(report)))


def speed(report: RunReport) -> Iterator[Exhibit]:
    moments = report.moments
    rows = tuple(
        (f"{one.start:,.1f} to {one.start + one.seconds:,.1f}", f"{one.rows:,}", f"{one.tokens:,}") for one in moments
    )
    table = PageTable(("seconds at work", "documents", "tokens"), rows, frozenset({0, 1, 2}))
    for unit, values in (("documents", [one.rows for one in moments]), ("tokens", [one.tokens for one in moments])):
        rates = [value / moments[0].seconds for value in values]
        title = f"{unit.capitalize()} a second"
        starts = [one.start for one in moments]
        plot = plots.timeline(starts, moments[0].seconds, rates, unit=unit, title=title)
        yield Exhibit(
            title, plot, table, "By the time of their commit, from the launch on; pauses between launches are left out."
        )


def lengths_of(report: RunReport) -> Iterator[Exhibit]:
    shown: list[Counts] = []
    for name, counts in report.summary.measures.items():
        if name.endswith("tokens") and counts.total and counts not in shown:
            shown.append(counts)
            of = name.removesuffix("tokens").rstrip("_")
            yield histogram_exhibit(counts, "tokens", f"Documents by length{f' ({of})' if of else ''}")


def histogram_exhibit(counts: Counts, label: str, title: str) -> Exhibit:
    """The histogram of a field of numbers."""
    bins = list(counts.bins())
    if len(bins) > 1:
        note = "; ".join(f"{q:.0%} up to {short_number(counts.quantile(q))}" for q in QUANTILES)
    else:
        note = f"All from {short_number(bins[0][0])} to {short_number(bins[0][1])}"
    rows = tuple(
        (short_number(low), short_number(high), f"{count:,}", f"{count / counts.total:.2%}")
        for low, high, count in bins
    )
    plot = plots.histogram(bins, log=counts.scale == "log", label=label, title=title) if len(bins) > 1 else None
    return Exhibit(
        title, plot, PageTable(("from", "to", "documents", "share"), rows, frozenset({0, 1, 2, 3})), f"{note}."
    )


def results(summary: Summary, prefix: str) -> Iterator[Exhibit]:
    """What a task's fields hold: over all rows, and by each column that the rows can be grouped by."""
    fields = {
        name: counts
        for name, counts in summary.measures.items()
        if name.startswith(prefix) and name.removeprefix(prefix) not in ("tokens", "truncated")
    }
    for name, counts in fields.items():
        title = name.removeprefix(prefix)
        if counts.scale == "classes" and counts.total:
            yield classes(counts, title)
        elif counts.scale in ("linear", "log") and counts.total:
            yield histogram_exhibit(counts, title, title)
    for column, groups in summary.groups.items():
        if groups and len(groups) > 1 and 2 * len(groups) <= max(3, summary.rows):
            for name, counts in fields.items():
                if counts.scale == "classes" and len(counts.by) > 1:
                    yield crossed(groups, name, name.removeprefix(prefix), column)
            yield by_group(groups, {name.removeprefix(prefix): name for name in fields}, prefix, column)


def classes(counts: Counts, title: str) -> Exhibit:
    most = counts.by.most_common()
    rows = tuple((name, f"{count:,}", f"{count / counts.total:.2%}") for name, count in most)
    bars = [Bar(name, count, f"{count / counts.total:.1%}") for name, count in most[:MOST_BARS]]
    note = f"The {MOST_BARS} that came most often of {len(most)}." if len(most) > MOST_BARS else ""
    table = PageTable((title, "count", "share"), rows, frozenset({1, 2}))
    return Exhibit(title, plots.bars(bars, label="count", title=title), table, note)


def largest(groups: dict[str, Summary]) -> list[tuple[str, Summary]]:
    """The groups with most rows, by name."""
    return sorted(sorted(groups.items(), key=lambda item: -item[1].rows)[:MOST_GROUPS])


def crossed(groups: dict[str, Summary], field: str, title: str, column: str) -> Exhibit:
    """Shares of classes in each group, and all of the figures."""
    shown = [(name, group.measures.get(field, Counts("classes"))) for name, group in largest(groups)]
    total: Counts = Counts("classes")
    for _, counts in shown:
        total.add(counts)
    names = sorted(name for name, _ in total.by.most_common(MOST_COLUMNS))
    shares = [[counts.by[name] / max(1, counts.total) for name in names] for _, counts in shown]
    what = f"{title} by {column}"
    plot = plots.heatmap([name for name, _ in shown], names, shares, down=column, title=what)
    rows = tuple(
        (name, label, f"{count:,}", f"{count / counts.total:.1%}")
        for name, counts in shown
        for label, count in counts.by.most_common()
    )
    note = "The stronger, the larger a share of the row's documents."
    if len(groups) > MOST_GROUPS or len(total.by) > MOST_COLUMNS:
        note += f" The largest of {len(groups)} rows and {len(total.by)} columns."
    return Exhibit(what, plot, PageTable((column, title, "count", "share"), rows, frozenset({2, 3})), note)


def by_group(groups: dict[str, Summary], fields: dict[str, str], prefix: str, column: str) -> Exhibit:
    """A line a group: its rows, how long they are, and the middle of each field."""
    head = [column, "rows", "tokens, median", "cut"]
    for title, name in fields.items():
        scale = next((g.measures[name].scale for g in groups.values() if name in g.measures), "classes")
        head.append({"classes": f"{title}, most often", "share": title}.get(scale, f"{title}, median"))
    rows = []
    for value, group in largest(groups):
        cells = [value, f"{group.rows:,}", middle(group, f"{prefix}tokens"), share_of_rows(group, f"{prefix}truncated")]
        rows.append((*cells, *(cell(group, name) for name in fields.values())))
    note = f"The largest of {len(groups)}." if len(groups) > MOST_GROUPS else ""
    return Exhibit(f"By {column}", None, PageTable(tuple(head), tuple(rows), frozenset(range(1, len(head)))), note)


def cell(group: Summary, name: str) -> str:
    counts = group.measures.get(name)
    if counts is None or not counts.total:
        return "—"
    if counts.scale == "share":
        return share_of_rows(group, name)
    if counts.scale == "classes":
        label, count = next((item for item in counts.by.most_common() if item[0] != OTHERS), (OTHERS, 0))
        return f"{plots.short_label(label)} {count / counts.total:.0%}"
    return middle(group, name)


def middle(group: Summary, name: str) -> str:
    counts = group.measures.get(name)
    return short_number(counts.quantile(0.5)) if counts and counts.total else "—"


def share_of_rows(group: Summary, name: str) -> str:
    counts = group.measures.get(name)
    return f"{(counts.total if counts else 0) / max(1, group.rows):.1%}"


def drifted(drift: Drift) -> Exhibit:
    rows = tuple(
        (
            one.measure or f"rows by {one.column}",
            f"{one.column}: {one.value}" if one.measure and one.column else "all rows",
            f"{one.before:,}",
            f"{one.after:,}",
            f"{one.psi:.3f}",
            f"{one.unseen:.1%}",
        )
        for one in drift.shifts[:MOST_SHIFTS]
    )
    head = ("what", "of", "rows before", "rows now", "stability index", "never seen before")
    note = (
        f"The largest of {len(drift.shifts)} spreads, this run against all that was scored until run {drift.after}; "
        "what chance explains is taken off the index. From 0.1 on it is some change, from 0.25 on much."
    )
    return Exhibit("Largest changes", None, PageTable(head, rows, frozenset({2, 3, 4, 5})), note)


def errors_exhibit(report: RunReport) -> Exhibit:
    rows = tuple(
        (
            one.code,
            one.meaning,
            f"{one.rows:,}",
            f"{one.rows / max(1, report.rows):.3%}",
            "\n".join(f"{source}, row {row}" if row >= 0 else source for source, row in one.examples),
        )
        for one in report.errors
    )
    bars = [Bar(one.code, one.rows, f"{one.rows:,}") for one in report.errors[:MOST_BARS]]
    plot = plots.bars(bars, label="rows", title="Error rows by code") if len(bars) > 1 else None
    table = PageTable(("code", "meaning", "rows", "of all", "the first of them"), rows, frozenset({2, 3}))
    return Exhibit("Error rows by code", plot, table, "Positions only: no text of a document is in this report.")


def what(report: RunReport) -> Iterator[Exhibit]:
    tasks = tuple(
        (one.name, one.task, one.model, one.weights[:16], one.tokenizer[:16], options_line(one.options))
        for one in report.tasks
    )
    yield table("Tasks and models", ("name", "task", "model", "weights", "tokenizer", "options"), tasks)
    if report.devices:
        rows = tuple(
            (
                one.name,
                str(one.hosts),
                f"{one.shards:,}",
                f"{one.tokens:,}",
                duration(one.seconds),
                f"{short_number(one.operations / max(one.seconds, 1e-9))}FLOP/s",
                "—" if one.utilization is None else f"{one.utilization:.1%}",
            )
            for one in report.devices
        )
        names = ("device", "machines", "shards", "tokens", "seconds of encoders", "rate of one", "MFU")
        yield table("Devices", names, rows, frozenset(range(1, 7)))
    launched = tuple(
        (
            when(one.started),
            one.code,
            f"{one.ray}, torch {one.torch}, Python {one.python}",
            f"{one.tokenizers} + {one.encoders} + {one.writers}",
            f"{len(one.nodes)}, {sum(n.cpus for n in one.nodes):g} CPUs, {sum(n.gpus for n in one.nodes):g} GPUs",
        )
        for one in report.launches
    )
    if launched:
        head = ("started", "xlmr-ray", "Ray", "tokenizers + encoders + writers", "machines")
        yield table("Launches", head, launched)


def table(
    title: str, head: tuple[str, ...], rows: Sequence[tuple[str, ...]], numbers: frozenset[int] = frozenset()
) -> Exhibit:
    return Exhibit(title, None, PageTable(head, tuple(rows), numbers))


def options_line(given: dict[str, object]) -> str:
    """Those that were given; the others are the task's own."""
    return ", ".join(f"{key}: {value}" for key, value in given.items() if value is not None) or "—"
