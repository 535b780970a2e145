"""Makes a folder `VERSION/` beside this file by the version in the checkout: python -m tests.batch.tables.make VERSION

A table of one day, and a second day whose driver is killed after its second record; `day-3` is for the version to come.
"""

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import s3fs

from tests.seaweed import running_seaweed
from xlmr_ray.demo import CORPUS


def job(folder: str) -> str:
    return f"""name: {folder.rpartition("/")[2]}
model: embedded:mini
input: {{path: 's3://{folder}/in/', text: text, id: id, keep: [lang]}}
tasks: [{{task: text-classification, top_k: 2}}]
output: {{path: 's3://{folder}/out/'}}
cluster: {{address: local, shard_rows: 4}}
errors: {{max_fraction: 0.5}}
incremental: true
"""


def days() -> dict[str, dict[str, bytes]]:
    documents = [row for file in sorted(CORPUS.glob("*.parquet")) for row in pq.read_table(file).to_pylist()]
    random.Random(0).shuffle(documents)

    def rows(count):
        taken = [documents.pop() for _ in range(count)]
        return [{key: row[key] for key in ("id", "lang", "article", "text")} for row in taken]

    def lines(found):
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found).encode()

    def parquet(found):
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(found), sink, row_group_size=8)
        return sink.getvalue()

    def csv(found):
        quoted = ((row["id"], row["lang"], row["text"].replace('"', '""')) for row in found)
        return ("id,lang,text\n" + "".join(f'{one},{lang},"{text}"\n' for one, lang, text in quoted)).encode()

    bad = b'{"id": "bad", "text": 7}\nnot json\n'
    first = {"a.parquet": parquet(rows(24)), "b.jsonl": lines(rows(9)) + bad + lines(rows(5)), "c.parquet": b"PAR1 no"}
    return {
        "day-1": first,
        "day-2": {"b.jsonl": lines(rows(12)), "c.csv": csv(rows(20))},
        "day-3": {"d.jsonl": lines(rows(10))},
    }


def main(version: str) -> None:
    here, folder = Path(__file__).parent / version, f"tests/table-of-{version}"
    here.mkdir()
    (here / "job.yaml").write_text(job(folder))
    for day, files in days().items():
        (here / day).mkdir()
        for name, data in files.items():
            (here / day / name).write_bytes(data)
    command = [sys.executable, "-m", "xlmr_ray", "run", str(here / "job.yaml"), "--quiet"]
    with running_seaweed() as server:
        environment = {**os.environ, **server.environment}
        key, secret = server.options["key"], server.options["secret"]
        store = s3fs.S3FileSystem(key=key, secret=secret, endpoint_url=server.endpoint, use_listings_cache=False)
        for day in ("day-1", "day-2"):
            known = {run.rpartition("/")[2] for run in store.ls(f"{folder}/out/_runs")} if day == "day-2" else set()
            for path in (here / day).iterdir():
                store.pipe_file(f"{folder}/in/{path.name}", path.read_bytes())
            if day == "day-1":
                subprocess.run(command, env=environment, check=True)
        driver = subprocess.Popen(command, env=environment, start_new_session=True)
        while driver.poll() is None:
            keys = [one.split("/_runs/")[1].split("/") for one in store.find(f"{folder}/out/_runs")]
            if sum(one[0] not in known and one[1] == "shards" for one in keys) >= 2:
                os.killpg(driver.pid, signal.SIGKILL)
            time.sleep(0.02)
        time.sleep(2)
        shutil.rmtree(here / "out", ignore_errors=True)
        for one in store.find(f"{folder}/out"):
            path = here / "out" / one.split("/out/", 1)[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(store.cat_file(one))


if __name__ == "__main__":
    main(*sys.argv[1:])
