"""Makes a run's report and leaves it beside the manifest, or on this machine."""

from __future__ import annotations

import json
from pathlib import Path

from xlmr_ray.batch.observe.report.gather import RunReport, gather_report
from xlmr_ray.batch.observe.report.page import report_page
from xlmr_ray.batch.store.base import Store
from xlmr_ray.errors import UserError


def report_key(run_id: str, ending: str = "html") -> str:
    return f"_runs/{run_id}/report.{ending}"


def leave_report(store: Store, run_id: str | None = None, *, price: float | None = None) -> str:
    """Makes the report anew, from the records, writes `report.html` and `report.json`, and says where the first is. Of
    a run that is not finished it tells how far it is. Raises UserError where there is no such run.
    """
    report = gather_report(store, run_id, price=price)
    store.put(report_key(report.run_id, "json"), json_of(report))
    store.put(report_key(report.run_id), report_page(report).encode())
    return store.url(report_key(report.run_id))


def save_report(store: Store, run_id: str | None, folder: Path, *, price: float | None = None) -> str:
    """The same into a folder of this machine; the store is only read. Raises UserError where it cannot be written."""
    report = gather_report(store, run_id, price=price)
    path = folder / "report.html"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".json").write_bytes(json_of(report))
        path.write_text(report_page(report), "utf-8")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror or error}") from None
    return str(path)


def json_of(report: RunReport) -> bytes:
    return json.dumps(report.to_json(), indent=1, ensure_ascii=False, allow_nan=False).encode()
