"""What plans, reads and tokenizes does without torch, which takes seconds to import in every process of a job."""

import subprocess
import sys

import pytest

PREPARED = """
import sys
import pyarrow as pa
from xlmr_ray.batch.stages.packs import TokenizeEach
from xlmr_ray.checkpoint.digest import files_stamp, weights_digest
from xlmr_ray.checkpoint.files import resolve
from xlmr_ray.tasks.registry import TASKS, bind_task
from xlmr_ray.tokenizer.tokenizer import XLMRobertaTokenizer

folder, name = resolve(sys.argv[1]), sys.argv[2]
tokenizer = XLMRobertaTokenizer.from_pretrained(folder)
task = bind_task(name, folder, {})
assert len(weights_digest(folder)) == 64 and files_stamp(folder)
encoded = task.prepare(pa.table({"text": ["Hola.", "Buenos días, mundo."]}), tokenizer)
assert encoded.num_rows == 2
print(*[module for module in ("torch", "ray.train", "transformers") if module in sys.modules])
"""


@pytest.mark.parametrize("name", ["embedding", "text-classification", "feature-extraction"])
def test_a_tokenizer_does_without_torch(name):
    done = subprocess.run(
        [sys.executable, "-c", PREPARED, "embedded:mini", name], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []
