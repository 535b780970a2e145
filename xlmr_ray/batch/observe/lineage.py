"""OpenLineage events of a launch, where the job file asks for them: START, then COMPLETE, FAIL or ABORT.

The one file that imports openlineage. A catalogue that cannot be reached is said once and ends no job.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from xlmr_ray.batch.job import Job, LineageSection
from xlmr_ray.batch.ledger.manifest import Manifest, manifest_files
from xlmr_ray.batch.observe.code_version import code_version
from xlmr_ray.batch.store.base import Store
from xlmr_ray.errors import UserError
from xlmr_ray.text.redact import redacted

if TYPE_CHECKING:
    from openlineage.client.client import OpenLineageClient
    from openlineage.client.event_v2 import InputDataset, OutputDataset

PRODUCER = "https://pypi.org/project/xlmr-ray"
KEY = "OPENLINEAGE_API_KEY"  # the client's own name for it


class Lineage:
    """The events of one launch."""

    def __init__(self, job: Job, section: LineageSection, run_id: str, store: Store, models: dict[str, str]) -> None:
        """`models`: digests of the weights by the models' names. Raises UserError where the client is not installed."""
        check_installed()
        from openlineage.client.uuid import generate_new_uuid

        self.job, self.section, self.run_id, self.store, self.models = job, section, run_id, store, models
        self.client = client(section)
        self.launch = str(generate_new_uuid())

    def start(self, rows: int | None, files: int) -> None:
        self.emit("START", inputs=self.inputs(rows, files))

    def complete(self, manifest: Manifest) -> None:
        self.emit("COMPLETE", inputs=self.inputs(None, None), outputs=self.outputs(manifest))

    def fail(self, reason: str) -> None:
        self.emit("FAIL", reason=redacted(reason))

    def abort(self, reason: str) -> None:
        self.emit("ABORT", reason=redacted(reason))

    def emit(
        self,
        state: str,
        *,
        inputs: list[InputDataset] | None = None,
        outputs: list[OutputDataset] | None = None,
        reason: str = "",
    ) -> None:
        """Raises whatever the client raises: the caller says it, and goes on."""
        from openlineage.client import event_v2, facet_v2

        run: dict[str, Any] = {
            "processing_engine": facet_v2.processing_engine_run.ProcessingEngineRunFacet(version("ray"), "ray"),
            "tags": facet_v2.tags_run.TagsRunFacet(
                [
                    facet_v2.tags_run.TagsRunFacetFields("run_id", self.run_id, "xlmr-ray"),
                    facet_v2.tags_run.TagsRunFacetFields("code", code_version(), "xlmr-ray"),
                    *(
                        facet_v2.tags_run.TagsRunFacetFields(f"weights of {redacted(name)}", digest, "xlmr-ray")
                        for name, digest in self.models.items()
                    ),
                ]
            ),
        }
        if reason:
            run["errorMessage"] = facet_v2.error_message_run.ErrorMessageRunFacet(reason, "Python")
        kind = facet_v2.job_type_job.JobTypeJobFacet("BATCH", "XLMR_RAY", "JOB")
        self.client.emit(
            event_v2.RunEvent(
                eventType=event_v2.RunState[state],
                eventTime=datetime.now(UTC).isoformat(),
                run=event_v2.Run(self.launch, run),
                job=event_v2.Job(self.section.namespace, self.job.name, {"jobType": kind}),
                producer=PRODUCER,
                inputs=inputs or [],
                outputs=outputs or [],
            )
        )

    def inputs(self, rows: int | None, files: int | None) -> list[InputDataset]:
        """The inputs as the job names them; counts are those of all, so only one input gets them."""
        from openlineage.client import event_v2, facet_v2

        facets: dict[str, Any] = {}
        if len(self.job.input.path) == 1 and rows is not None:
            statistics = facet_v2.input_statistics_input_dataset.InputStatisticsInputDatasetFacet(rows, None, files)
            facets["inputStatistics"] = statistics
        return [event_v2.InputDataset(*dataset(path), inputFacets=facets) for path in self.job.input.path]

    def outputs(self, manifest: Manifest) -> list[OutputDataset]:
        """The rows and, where there are any, the error rows."""
        from openlineage.client import event_v2, facet_v2

        found = []
        files = list(manifest_files(self.store, manifest.run_id))
        for kind in ("data", "errors"):
            own = [file for file in files if file.key.startswith(f"{kind}/")]
            if not own:
                continue
            facets: dict[str, Any] = {
                "version": facet_v2.dataset_version_dataset.DatasetVersionDatasetFacet(manifest.run_id),
                "schema": facet_v2.schema_dataset.SchemaDatasetFacet(
                    [
                        facet_v2.schema_dataset.SchemaDatasetFacetFields(field.name, str(field.type))
                        for field in schema(self.store, own[0].key)
                    ]
                ),
            }
            statistics = facet_v2.output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(
                sum(file.rows for file in own), sum(file.bytes for file in own), len(own)
            )
            namespace, name = dataset(f"{self.job.output.path.rstrip('/')}/{kind}")
            output = event_v2.OutputDataset(
                namespace, name, facets=facets, outputFacets={"outputStatistics": statistics}
            )
            found.append(output)
        return found


def check_installed() -> None:
    """Raises UserError where the client is not installed."""
    try:
        import openlineage.client.uuid  # noqa: F401
    except ImportError:
        raise UserError("lineage: openlineage-python is not installed; pip install 'xlmr-ray[lineage]'") from None


def client(section: LineageSection) -> OpenLineageClient:
    """To the URL or file of the section; to what the client's own variables and file name where it has neither."""
    from openlineage.client import OpenLineageClient
    from openlineage.client.event_v2 import set_producer

    set_producer(PRODUCER)
    if section.file is not None:
        return OpenLineageClient(config={"transport": {"type": "file", "log_file_path": section.file, "append": True}})
    if section.url is not None:
        # Two tries more: a launch should not wait long for who only watches it.
        transport: dict[str, Any] = {"type": "http", "url": section.url, "retry": {"total": 2, "backoff_factor": 0.3}}
        if key := os.environ.get(KEY):
            transport["auth"] = {"type": "api_key", "apiKey": key}
        return OpenLineageClient(config={"transport": transport})
    return OpenLineageClient()


def dataset(path: str) -> tuple[str, str]:
    """A dataset's namespace and name, by OpenLineage's rules: `s3://bucket` and the key; `file` and the path."""
    path = redacted(path)
    if "://" not in path:
        return "file", str(Path(path).expanduser().absolute())
    parts = urlsplit(path)
    if parts.scheme in ("file", "local"):
        return "file", parts.path
    return f"{parts.scheme}://{parts.netloc}", parts.path.strip("/") or "/"


def schema(store: Store, key: str) -> pa.Schema:
    with store.open(key) as file:
        return pq.read_schema(file)
