"""The catalogue of what can be wrong with a row or a file: stable names, written to `errors/` and to dead letters.

A *row code* ends one row as one error row. A *file code* ends one file (or the rest of it) as one dead letter; the
other files go on. A permission or network error has no code: it is not bad data, it is retried and then fails the job.
"""

from dataclasses import dataclass
from typing import Literal

from xlmr_ray.engine import error_codes


@dataclass(frozen=True)
class Code:
    """One entry of the catalogue: `name` is what is written, `meaning` what the documentation says."""

    name: str
    level: Literal["row", "file"]
    meaning: str


CATALOGUE: dict[str, Code] = {}


def _row(name: str, meaning: str) -> str:
    CATALOGUE[name] = Code(name, "row", meaning)
    return name


def _file(name: str, meaning: str) -> str:
    CATALOGUE[name] = Code(name, "file", meaning)
    return name


# Reading
MALFORMED_JSON = _row("malformed_json", "the line is not JSON")
TRUNCATED_LINE = _row("truncated_line", "the last line ends in the middle of a value, without a newline")
NOT_AN_OBJECT = _row("not_an_object", "the line is JSON, but a scalar or an array instead of an object")
NESTING_TOO_DEEP = _row("nesting_too_deep", "the JSON is nested deeper than 100 levels")
MALFORMED_CSV = _row(
    "malformed_csv", "a quote is not closed where its field ends, or the record has not as many fields as the header"
)
MISSING_FIELD = _row("missing_field", "a field that the job reads as text is not in the row")
NULL_FIELD = _row("null_field", "a field that the job reads as text is null")
WRONG_TYPE = _row("wrong_type", "a field that the job reads as text is not a string")
WRONG_ID_TYPE = _row("wrong_id_type", "the id is neither a string nor an integer")
INVALID_UTF8 = _row("invalid_utf8", "the line or the field is not valid UTF-8")
ROW_TOO_LARGE = _row("row_too_large", "the row is over the byte limit")
UNFIT_VALUE = _row("unfit_value", "a value of a kept column does not fit the type that the column has in the output")
UNREADABLE_ROW = _row("unreadable_row", "the Parquet row group of the row is damaged")
SHARD_TOO_LARGE = _row("shard_too_large", "the Parquet rows before it in the shard inflate to over 512 MiB")

# Scoring
EMPTY_TEXT = _row("empty_text", "the text is empty and the job says `errors.empty: error`")
TOKENIZER_ERROR = _row("tokenizer_error", "the tokenizer raised or panicked on the row")
SCORING_ERROR = _row("scoring_error", "the model or the task raised an error on the row, also by itself")
KILLED_WORKER = _row("killed_worker", "the row, by itself, killed the process that worked on it, twice")
TIMED_OUT = _row("timed_out", "the row, by itself, took more than `errors.timeout` seconds")
NON_FINITE = _row(error_codes.NON_FINITE, "the scores hold NaN or infinity")
OUT_OF_MEMORY = _row(error_codes.OUT_OF_MEMORY, "the row, by itself, does not fit in the memory of its device")
TOKEN_OUT_OF_RANGE = _row(
    error_codes.TOKEN_OUT_OF_RANGE, "the tokenizer gives a token that the model has no embedding for"
)
NO_TOKENS = _row(error_codes.NO_TOKENS, "the tokenizer gives no token at all for the text, not even a special one")
# As in tasks/unfit.py, which is not imported: writers do without torch.
NO_MASK = _row("no_mask", "the text has no mask to fill")
WRONG_CHOICES = _row("wrong_choices", "the choices are not a list of at least one string")
WRONG_SPANS = _row("wrong_spans", "the spans are not pairs of characters of the text, or one has no token")

# Files
EMPTY_FILE = _file("empty_file", "the file has zero bytes")
FILE_GONE = _file("file_gone", "the file was listed, and deleted before it was planned")
WRONG_FORMAT = _file("wrong_format", "the content is not in the format that the file's ending says")
CORRUPT_FOOTER = _file("corrupt_footer", "the Parquet footer is cut or damaged")
CORRUPT_STREAM = _file(
    "corrupt_stream",
    "the gzip or zstd stream, or the web archive, is cut or damaged; the rows before the damage are read",
)
SWALLOWED_LINES = _file(
    "swallowed_lines", "quotes that are not closed swallow lines of a CSV file: these are lost, its other rows are read"
)
DECOMPRESSION_BOMB = _file("decompression_bomb", "the file inflates to more than 1 GiB and 200 times its size")
MISSING_COLUMN = _file("missing_column", "a column that the job names is not in the file")
AMBIGUOUS_COLUMN = _file("ambiguous_column", "a column that the job names is in the file more than once")
WRONG_COLUMN_TYPE = _file("wrong_column_type", "the Parquet type of a column that the job names cannot be used for it")
# Of runs before types were widened: written no more.
SCHEMA_DRIFT = _file("schema_drift", "a kept column has another type than in the first file (in runs of version 0.1.0)")
EXTENSION_TYPE = _file(
    "extension_type", "the file names an Arrow extension type that is not Arrow's own; it is never loaded"
)
