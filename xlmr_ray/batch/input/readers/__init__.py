"""The input formats. A format is one file here, with its `Reader`, and one line of `READERS`."""

from xlmr_ray.batch.input.readers.csv import Csv, Tsv
from xlmr_ray.batch.input.readers.jsonl import JsonLines
from xlmr_ray.batch.input.readers.parquet import Parquet
from xlmr_ray.batch.input.readers.reader import Reader
from xlmr_ray.batch.input.readers.text import PlainText
from xlmr_ray.batch.input.readers.warc import Warc

READERS: dict[str, Reader] = {
    reader.name: reader for reader in (Parquet(), JsonLines(), Csv(), Tsv(), PlainText(), Warc())
}
