"""Makes a run's report and leaves it beside the manifest."""

from __future__ import annotations

import json

from xlmr_ray.batch.report.gather import RunReport, gather
from xlmr_ray.batch.report.page import page
from xlmr_ray.batch.store import Store


def report_key(run_id: str, ending: str = "html") -> str:
    return f"_runs/{run_id}/report.{ending}"


def leave_report(store: Store, run_id: str | None = None, *, price: float | None = None) -> RunReport:
    """Makes the report anew, from the records, and writes `report.html` and `report.json`. Of a run that is not
    finished it tells how far it is. Raises UserError where there is no such run.
    """
    report = gather(store, run_id, price=price)
    store.put(report_key(report.run_id, "json"), json_of(report))
    store.put(report_key(report.run_id), page(report).encode())
    return report


def json_of(report: RunReport) -> bytes:
    return json.dumps(report.to_json(), indent=1, ensure_ascii=False, allow_nan=False).encode()
