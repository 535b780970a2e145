"""The trained checkpoint: a folder that transformers loads, with what it was trained on, whole or not at all."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from xlmr_ray.checkpoint.folder import HEADS, model_folder
from xlmr_ray.checkpoint.heads import save_head
from xlmr_ray.errors import JobFailed, UserError
from xlmr_ray.tasks.embedding import Embedding
from xlmr_ray.tasks.rerank import Rerank
from xlmr_ray.tokenizer.tokenizer import XLMRobertaTokenizer
from xlmr_ray.train.model import Trained
from xlmr_ray.train.objectives.objective import Objective
from xlmr_ray.train.page import training_page
from xlmr_ray.train.state import reason

RECORD, PAGE = "training.json", "training.html"
SENTENCE_FILE = "config_sentence_transformers.json"


def made_by(output: Path) -> str | None:
    """The identity of the training that made a folder; None where there is none. Raises UserError for a folder that
    no training made.
    """
    if not output.exists():
        return None
    try:
        return str(json.loads((output / RECORD).read_text("utf-8"))["identity"])
    except (OSError, ValueError, LookupError, TypeError):
        raise UserError(f"output.path: {output} is there, and no training made it; name another one") from None


def is_head(output: Path, encoder: Path) -> bool:
    """Whether an output is a head beside its encoder: `ENCODER/heads/NAME`."""
    return output.parent.name == HEADS and output.parent.parent.resolve() == encoder.resolve()


def save_trained(
    trained: Trained,
    objective: Objective,
    tokenizer: XLMRobertaTokenizer,
    *,
    source: Path,
    output: Path,
    record: Mapping[str, Any],
) -> None:
    """Writes the folder beside its place and renames it. `source` is the checkpoint that the training began with.
    Raises JobFailed where there is no room.
    """
    files = {RECORD: json.dumps(record, indent=2, ensure_ascii=False, default=str) + "\n", PAGE: training_page(record)}
    room = None
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        if is_head(output, source):
            save_head(trained.model, source, output.name)
            leave_record(output, files)
            return
        room = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
        made = room / output.name
        if trained.adapter is not None:
            trained.adapter.save_pretrained(str(made), save_embedding_layers=False)
            leave_record(made, files)
            made.rename(output)
            return
        trained.model.save_pretrained(made)
        tokenizer.save_pretrained(made)
        if isinstance(objective.task, Embedding):
            save_sentence_modules(source, made)
        elif isinstance(objective.task, Rerank) and (model_folder(source) / SENTENCE_FILE).is_file():
            # The prompt and the function that it was trained with.
            shutil.copy(model_folder(source) / SENTENCE_FILE, made)
        leave_record(made, files)
        made.rename(output)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise JobFailed(
            f"{output}: cannot be written ({reason(error)}); the training is kept, the same command writes it again"
        ) from None
    finally:
        if room is not None:
            shutil.rmtree(room, ignore_errors=True)


def leave_record(folder: Path, files: Mapping[str, str]) -> None:
    """What was done, for programs and for people; the record last, which says that a training made the folder."""
    for name in (PAGE, RECORD):
        (folder / name).write_text(files[name], "utf-8")


def save_sentence_modules(source: Path, made: Path) -> None:
    """What makes a folder sentence-transformers': the source's modules, or mean pooling and vectors of length 1."""
    if (source / "modules.json").is_file():
        modules = json.loads((source / "modules.json").read_text("utf-8"))
        for module in modules[1:]:
            if (source / module["path"]).is_dir():
                shutil.copytree(source / module["path"], made / module["path"])
        inner = model_folder(source)
        modules[0]["path"] = ""
        for folder, name in ((inner, "sentence_bert_config.json"), (source, SENTENCE_FILE)):
            if (folder / name).is_file():
                shutil.copy(folder / name, made)
    else:
        kind = "sentence_transformers.models"
        modules = [
            {"idx": 0, "name": "0", "path": "", "type": f"{kind}.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{kind}.Pooling"},
            {"idx": 2, "name": "2", "path": "2_Normalize", "type": f"{kind}.Normalize"},
        ]
        (made / "1_Pooling").mkdir()
        width = json.loads((made / "config.json").read_text("utf-8"))["hidden_size"]
        pooling = {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True}
        (made / "1_Pooling" / "config.json").write_text(json.dumps(pooling), "utf-8")
    (made / "modules.json").write_text(json.dumps(modules, indent=2) + "\n", "utf-8")
