import json
import os
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.tokenizer.cases import ASSETS, SPECIAL
from xlmr_ray.tokenizer.tokenizer import XLMRobertaTokenizer


@pytest.fixture(scope="session")
def small() -> Path:
    """The embedded checkpoint's folder: XLM-R's layout with 20,000 pieces."""
    return ASSETS / "mini"


@pytest.fixture(scope="session")
def e5() -> Path:
    folder = os.environ.get("XLMR_RAY_E5")
    if not folder:
        pytest.skip("XLMR_RAY_E5 names no folder with XLM-R's own 250k vocabulary")
    return Path(folder)


@pytest.fixture(scope="session", params=["small", *(["e5"] if os.environ.get("XLMR_RAY_E5") else [])])
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def ours(folder: Path) -> XLMRobertaTokenizer:
    return XLMRobertaTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def theirs(folder: Path) -> PreTrainedTokenizerFast:
    length = json.loads((folder / "tokenizer_config.json").read_text()).get("model_max_length", 512)
    # As a script loads it: for XLM-R's vocabulary transformers does not take the pre-tokenizer out of the file.
    return AutoTokenizer.from_pretrained(
        folder, model_max_length=length, model_input_names=["input_ids", "attention_mask"], **SPECIAL
    )
