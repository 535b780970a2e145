"""From rates and an amount of work to time, machines, cores, shards, requests, bytes and money."""

import math
from dataclasses import dataclass

from xlmr_ray.bench.sizing.rates import Rates
from xlmr_ray.errors import UserError

# Requests to the output's store for a shard without error rows or hashes (`reuse`), counted by a test. Written: the
# data file, the record. Read: is it committed, is the file whole.
WRITES, READS = 2, 2
# Names that a listing of the store gives in one request, and how many listings name a shard, all at the end of a run:
# of records for the manifest and for the report, and of data files. As many shards have their records' copies in one
# object, which is written once and read as often as records are listed. Listings of other names, and the plan and the
# manifest, are few however many shards.
PAGE, LISTINGS, COPIES, COPIES_READ = 1000, 3, 1, 2
# S3 Standard in us-east-1, USD a request, by aws.amazon.com/s3/pricing as of 2025: 0.005 a
# thousand PUT and LIST, 0.0004 a thousand GET and HEAD.
WRITE_PRICE, READ_PRICE = 0.005 / 1000, 0.0004 / 1000
# Shards a second that one driver hands out and commits: 34 on two cores of an AMD EPYC of 2 GHz that did the actors'
# part, too; 25 ms of its CPU each (tests/benchmarks/driver.py).
DRIVER_SHARDS = 30.0
# Bytes of a shard's record.
RECORD_BYTES = 1500


@dataclass(frozen=True, kw_only=True)
class Amount:
    """What is to be scored; `known`: the share of it that is not computed, as equal texts are, or were before."""

    documents: float
    tokens: float
    shard_rows: int
    known: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """`machines` of the kind that the rates are of, GPUs where these are a GPU's. `tokenizer_cores` for each of them to
    be busy; `short`: by how many cores a machine has fewer than that. `driver`: the share of what one driver can drive;
    at 1 that is the limit. `requests` to the output's store, and what S3 charges for them in USD.
    """

    machines: int
    seconds: float
    machine_hours: float
    cost: float | None
    tokens_per_second: float
    tokenizer_cores: float
    short: float
    driver: float
    shards: int
    requests: int
    request_cost: float
    output_bytes: float


def estimate(
    rates: Rates, amount: Amount, *, machines: int | None, hours: float | None, price: float | None
) -> Estimate:
    """With so many `machines`, or as many as are done within `hours`; `price` is that of a machine's hour.

    Raises UserError where it cannot be done, or what is asked for makes no sense.
    """
    if amount.documents <= 0 or amount.tokens <= 0:
        raise UserError(f"there is nothing to score: {amount.documents:,.0f} documents, {amount.tokens:,.0f} tokens")
    if machines is not None and hours is not None:
        raise UserError("give the machines or the hours, not both")
    if machines is not None and machines < 1:
        raise UserError(f"machines: got {machines}, expected a whole number from 1 on")
    if not 0 <= amount.known < 1:
        raise UserError(f"known: got {amount.known:g}, expected a share from 0 up to, and without, 1")
    if price is not None and price < 0:
        raise UserError(f"price: got {price}, expected what an hour of a machine costs")
    # On a CPU the tokenizers run beside the encoders, and are in the measured rate of a run. They read what is known,
    # too; so that their cores keep up with the encoders, there are more of them.
    cores = rates.tokens_per_second / rates.tokenizing_per_core / (1 - amount.known)
    short = max(0.0, cores - max(1, rates.cores - 2)) if rates.on_gpu else 0.0
    rate = rates.tokens_per_second * (1 - short / cores)
    shards = max(1, math.ceil(amount.documents / amount.shard_rows))
    work = amount.tokens * (1 - amount.known) / rate
    if hours is not None:
        left = hours * 3600 - rates.start_seconds
        if left <= 0:
            raise UserError(f"hours: {hours:g} is less than a start takes ({rates.start_seconds:.0f} s)")
        machines = max(1, math.ceil(work / left))
    machines = machines or 1
    # The last round of shards keeps only some encoders busy; half a shard each is what that costs on the average.
    tail = 0.0 if machines == 1 else min(work / shards, work / machines) / 2
    computing, driving = work / machines + tail, shards / DRIVER_SHARDS
    busy = max(computing, driving)
    seconds = rates.start_seconds + busy
    machine_hours = seconds * machines / 3600
    pages = math.ceil(shards / PAGE)
    writes, reads = shards * WRITES + pages * (LISTINGS + COPIES), shards * READS + pages * COPIES_READ
    return Estimate(
        machines=machines,
        seconds=seconds,
        machine_hours=machine_hours,
        cost=None if price is None else machine_hours * price,
        tokens_per_second=rate * machines * computing / busy,
        tokenizer_cores=cores,
        short=short,
        driver=driving / busy,
        shards=shards,
        requests=writes + reads,
        request_cost=writes * WRITE_PRICE + reads * READ_PRICE,
        output_bytes=amount.documents * rates.output_bytes + shards * RECORD_BYTES,
    )
