"""The published rows of an output, as a Ray dataset."""

import ray.data

from xlmr_ray.batch.finish import current, manifest_files
from xlmr_ray.batch.store import filesystem, open_store
from xlmr_ray.errors import UserError


def result_files(output: str, *, errors: bool = False) -> list[str]:
    """URLs or paths of the committed files of the published run: its rows, or its error rows.

    Raises UserError where nothing is published.
    """
    store = open_store(output)
    published = current(store)
    if published is None:
        raise UserError(f"{output}: nothing is published there; a run publishes when all of its shards are committed")
    kind = "errors/" if errors else "data/"
    return [store.url(file.key) for file in manifest_files(store, published.run_id) if file.key.startswith(kind)]


def read_results(output: str, *, errors: bool = False) -> ray.data.Dataset:
    """The rows (or error rows) of the published run in `output`, a folder or URL: exactly the committed ones, each
    once, whatever else lies there. Raises UserError where nothing is published.
    """
    files = result_files(output, errors=errors)
    if not files:
        return ray.data.from_items([])
    fs, _ = filesystem(output)
    return ray.data.read_parquet(files, filesystem=None if "://" not in output else fs)
