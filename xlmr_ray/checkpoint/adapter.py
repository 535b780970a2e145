"""A folder of peft's with a LoRA adapter -> a checkpoint's folder with the adapter in its weights."""

import hashlib
import json
import math
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from xlmr_ray.checkpoint.digest import weights_digest
from xlmr_ray.checkpoint.folder import HEADS, encoder_folder, model_folder
from xlmr_ray.checkpoint.names import is_encoder
from xlmr_ray.checkpoint.tensors import ADAPTER, BIN, BIN_INDEX, INDEX, SINGLE, open_tensors
from xlmr_ray.errors import UserError

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
# Other kinds of LoRA, which compute something else; each is off where it is absent, false or empty.
OTHER_KINDS = ("use_dora", "use_qalora", "lora_bias", "layer_replication", "alora_invocation_tokens", "megatron_config",
               "corda_config", "eva_config", "lora_ga_config", "loftq_config", "use_bdlora", "arrow_config",
               "velora_config", "monteclora_config", "kasa_config", "trainable_token_indices")  # fmt: skip
# Ways to begin that leave the base's weights as they are; the others (pissa, olora, ...) take a part out of them first.
BEGINNINGS = (True, False, None, "gaussian", "orthogonal")
ARCHITECTURES = {
    "SEQ_CLS": "ForSequenceClassification",
    "TOKEN_CLS": "ForTokenClassification",
    "QUESTION_ANS": "ForQuestionAnswering",
    "CAUSAL_LM": "ForCausalLM",
}


def is_adapter(folder: Path) -> bool:
    """Whether a folder has an adapter of peft's and no whole model."""
    return (folder / ADAPTER).is_file() and not (folder / "config.json").exists()


def merged(folder: Path, base_of: Callable[[str], Path], cache: Path) -> Path:
    """The base checkpoint with the adapter of `folder` in its weights, as `merge_and_unload` of peft makes it, under a
    name made of both in `cache`; made only once. `base_of` finds the base by the name that the adapter has for it.

    Raises UserError, one line, for another kind of adapter than LoRA, and for one that does not fit its base.
    """
    config = read(folder)
    base = base_of(base_name(folder))
    sources = [*filter(None, (encoder_folder(base), base))]  # a head's tokenizer is its encoder's
    content = hashlib.sha256((folder / WEIGHTS).read_bytes() + json.dumps(config, sort_keys=True).encode())
    for source in sources:  # the same weights may come with another tokenizer or other labels
        for file in sorted(file for file in source.rglob("*") if file.suffix in (".json", ".model")):
            if HEADS not in file.relative_to(source).parts:
                content.update(file.read_bytes())
    target = cache / "adapters" / f"{weights_digest(base)[:16]}-{content.hexdigest()[:16]}"
    if target.exists():
        return target
    state, architecture = merged_state(folder, config, base)
    target.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=".merging.", dir=target.parent))
    try:
        left = shutil.ignore_patterns("*.safetensors", "*.bin", HEADS)
        for source in sources:
            shutil.copytree(source, made, dirs_exist_ok=True, ignore=left)
        inner = made / model_folder(base).relative_to(base)
        for index in (INDEX, BIN_INDEX):
            (inner / index).unlink(missing_ok=True)
        described = json.loads((inner / "config.json").read_text("utf-8"))
        count = len(architecture.get("id2label") or ())
        if count and not own_head(config) and len(described.get("id2label") or ()) == count:
            architecture = {"architectures": architecture["architectures"]}  # the base's names, as transformers has it
        (inner / "config.json").write_text(json.dumps({**described, **architecture}, indent=2), "utf-8")
        save_file(state, inner / SINGLE, metadata={"format": "pt"})
        for file in (f for pattern in ("*.safetensors", "*.bin") for f in base.rglob(pattern)):
            inside = file.relative_to(base)
            if file.parent != model_folder(base) and HEADS not in inside.parts:  # dense layers of sentence models
                shutil.copyfile(file, made / inside)
        made.chmod(0o755)
        made.rename(target)
    except OSError:
        if not target.exists():  # another process was first
            raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return target


def base_name(folder: Path) -> str:
    """What the adapter calls its base: a folder, a hub id with its revision, or whatever else a checkpoint may be
    called.
    """
    config = read(folder)
    name, revision = str(config["base_model_name_or_path"]), config.get("revision")
    return f"{name}@{revision}" if revision and ":" not in name and not Path(name).exists() else name


def read(folder: Path) -> dict[str, Any]:
    """The adapter's configuration. Raises UserError where it is none of LoRA's."""
    try:
        config = json.loads((folder / ADAPTER).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / ADAPTER}: cannot be read as JSON ({type(error).__name__})") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise UserError(f"{folder}: an adapter of kind {kind}, expected LORA")
    for name in OTHER_KINDS:
        if config.get(name):
            raise UserError(f"{folder}: {name} is not supported; merge the adapter with peft's merge_and_unload")
    if (beginning := config.get("init_lora_weights")) not in BEGINNINGS:
        raise UserError(
            f"{folder}: init_lora_weights {beginning!r} is not supported: it changes the base's weights, too; save the "
            "adapter with peft's path_initial_model_for_weight_conversion, or merge it with merge_and_unload"
        )
    if not config.get("base_model_name_or_path"):
        raise UserError(f"{folder / ADAPTER}: names no base_model_name_or_path")
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder}: no {WEIGHTS}" + (f", {BIN} is of no use" if (folder / BIN).exists() else ""))
    return config


def merged_state(folder: Path, config: Mapping[str, Any], base: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors of the merged checkpoint by the base's names, and what its configuration has to say of its head."""
    files = open_tensors(model_folder(base))
    state = {name: files.read(name).clone() for name in files.stored}
    by_bare = {bare(name): name for name in state}
    adapter = load_file(folder / WEIGHTS)
    pairs: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    for name, tensor in adapter.items():
        plain = name.removeprefix(PREFIX)
        if split := re.fullmatch(r"(.+)\.lora_(embedding_)?([AB])(\.weight)?", plain):
            pairs.setdefault(f"{split[1]}.weight", {})[f"{split[2] or ''}{split[3]}"] = tensor
        elif "lora_" in plain:
            raise UserError(f"{folder}: {name} is no part of LoRA that is supported")
        else:
            whole[plain.replace(".modules_to_save.default", "").replace(".base_layer", "")] = tensor
    for name, tensor in whole.items():
        if bare(name) not in by_bare and is_encoder(bare(name)):
            raise UserError(f"{folder}: {name}, which {base} has not")
        state[by_bare.get(bare(name), name)] = tensor
    for module, parts in pairs.items():
        place = by_bare.get(bare(module))
        if place is None:
            raise UserError(f"{folder}: an adapter of {module}, which {base} has not")
        change = delta(folder, config, module.removesuffix(".weight"), parts)
        if change.shape != state[place].shape:
            raise UserError(
                f"{folder}: the adapter of {module} is of shape {list(change.shape)}, the base's weight of "
                f"{list(state[place].shape)}"
            )
        state[place] = state[place].float() + change  # in half precision the change would be lost in rounding
    return {name: tensor.contiguous() for name, tensor in state.items()}, head_of(config, whole)


def delta(folder: Path, config: Mapping[str, Any], module: str, parts: Mapping[str, Tensor]) -> Tensor:
    """What the adapter adds to a weight `(out, in)`; to a table of embeddings `(tokens, width)`."""
    embedding = "embedding_A" in parts
    kind = "embedding_" if embedding else ""
    if {f"{kind}A", f"{kind}B"} != parts.keys():
        raise UserError(f"{folder}: {module} has {', '.join(sorted(parts))}, expected lora_A and lora_B")
    first, second = parts[f"{kind}A"].float(), parts[f"{kind}B"].float()
    rank = first.shape[0]
    alpha = by_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", 8))
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    product = second @ first * scale
    return torch.as_tensor(product.T if embedding or config.get("fan_in_fan_out") else product)


def by_pattern(patterns: Mapping[str, float] | None, module: str, usual: float) -> float:
    """The value for a module where a pattern ends as its name does, as peft matches them."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return usual


def head_of(config: Mapping[str, Any], whole: Mapping[str, Tensor]) -> dict[str, Any]:
    """The architecture of a head that came with the adapter, and how many labels it has; {} where none did."""
    ending = ARCHITECTURES.get(str(config.get("task_type")))
    outputs = (one for name, one in whole.items() if re.search(r"(classifier|out_proj|qa_outputs)\.weight$", name))
    out = min(outputs, key=len, default=None)
    if ending is None or out is None:
        return {}
    return {"architectures": [f"XLMRoberta{ending}"]} | (own_head(config) or labels(len(out)))


def own_head(config: Mapping[str, Any]) -> dict[str, Any]:
    """The head's labels and kind of problem, where a training here (`train/lora.py`) has put them into `auto_mapping`,
    which peft hands on as it is.
    """
    kept = config.get("auto_mapping") or {}
    return {key: kept[key] for key in ("id2label", "label2id", "problem_type") if key in kept}


def labels(count: int) -> dict[str, Any]:
    """The adapter's files keep none: they are called as transformers calls those without a name."""
    return {
        "id2label": {str(place): f"LABEL_{place}" for place in range(count)},
        "label2id": {f"LABEL_{place}": place for place in range(count)},
    }


def bare(name: str) -> str:
    """Without the encoder's own name in front, which a head puts there."""
    return re.sub(r"^(roberta|bert|model)\.", "", name)
