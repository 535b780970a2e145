"""Arguments of transformers that have no use here: in a table of the code, and on the page."""

from pathlib import Path

import pytest

from xlmr_ray.engine.pipeline_arguments import MAKING
from xlmr_ray.errors import UserError
from xlmr_ray.foreign import Foreign
from xlmr_ray.model.generation.generate import FOREIGN as GENERATING
from xlmr_ray.modeling.loading import LOADING
from xlmr_ray.modeling.pretrained import SAVING
from xlmr_ray.tokenizer.arguments import FOREIGN, FOREIGN_SAVING

TABLES = [LOADING, SAVING, MAKING, GENERATING, FOREIGN, FOREIGN_SAVING]
PAGE = (Path(__file__).parents[1] / "docs" / "transformers.md").read_text("utf-8")


def test_what_is_left() -> None:
    table = Foreign("f", ignored={"fast": "always so"}, refused={"tf": "give safetensors"})
    assert table.left({"fast": True, "tf": False, "text": 1}) == {"text": 1}
    assert table.left({"tf": None}) == {}
    with pytest.raises(UserError, match="f: tf is not supported: give safetensors"):
        table.left({"tf": True})


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.function)
def test_the_page_names_every_argument(table: Foreign) -> None:
    assert [name for name in (*table.ignored, *table.refused) if f"`{name}`" not in PAGE] == []
    assert not table.ignored.keys() & table.refused.keys()
