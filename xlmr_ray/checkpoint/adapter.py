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
from xlmr_ray.checkpoint.folder import encoder_folder, model_folder
from xlmr_ray.checkpoint.tensors import BIN, BIN_INDEX, INDEX, SINGLE, open_tensors
from xlmr_ray.errors import UserError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
# Other kinds of LoRA, which compute something else; each is off where it is absent, false or empty.
OTHER_KINDS = ("use_dora", "use_qalora", "lora_bias", "layer_replication", "alora_invocation_tokens", "megatron_config",
               "corda_config", "eva_config", "use_bdlora", "arrow_config")  # fmt: skip
ARCHITECTURES = {
    "SEQ_CLS": "ForSequenceClassification",
    "TOKEN_CLS": "ForTokenClassification",
    "QUESTION_ANS": "ForQuestionAnswering",
    "CAUSAL_LM": "ForCausalLM",
}


def is_adapter(folder: Path) -> bool:
    """Whether a folder has an adapter of peft's and no whole model."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").exists()


def merged(folder: Path, base_of: Callable[[str], Path], cache: Path) -> Path:
    """The base checkpoint with the adapter of `folder` in its weights, as `merge_and_unload` of peft makes it, under a
    name made of both in `cache`; made only once. `base_of` finds the base by the name that the adapter has for it.

    Raises UserError, one line, for another kind of adapter than LoRA, and for one that does not fit its base.
    """
    config = read(folder)
    base = base_of(str(config["base_model_name_or_path"]))
    content = hashlib.sha256((folder / WEIGHTS).read_bytes() + json.dumps(config, sort_keys=True).encode()).hexdigest()
    target = cache / "adapters" / f"{weights_digest(base)[:16]}-{content[:16]}"
    if target.exists():
        return target
    state, architecture = merged_state(folder, config, base)
    target.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=".merging.", dir=target.parent))
    try:
        left = shutil.ignore_patterns("*.safetensors", "*.bin", "heads")
        for source in filter(None, (encoder_folder(base), base)):  # a head's tokenizer is its encoder's
            shutil.copytree(source, made, dirs_exist_ok=True, ignore=left)
        inner = made / model_folder(base).relative_to(base)
        for index in (INDEX, BIN_INDEX):
            (inner / index).unlink(missing_ok=True)
        described = json.loads((inner / "config.json").read_text("utf-8"))
        (inner / "config.json").write_text(json.dumps({**described, **architecture}, indent=2), "utf-8")
        save_file(state, inner / SINGLE, metadata={"format": "pt"})
        for file in (f for pattern in ("*.safetensors", "*.bin") for f in base.rglob(pattern)):
            place = file.relative_to(base)
            if file.parent != model_folder(base) and "heads" not in place.parts:  # dense layers of sentence models
                shutil.copyfile(file, made / place)
        made.chmod(0o755)
        made.rename(target)
    except OSError:
        shutil.rmtree(made, ignore_errors=True)
        if not target.exists():  # another process was first
            raise
    return target


def base_name(folder: Path) -> str:
    """What the adapter calls its base: a folder, a hub id, or whatever else a checkpoint may be called."""
    return str(read(folder)["base_model_name_or_path"])


def read(folder: Path) -> dict[str, Any]:
    """The adapter's configuration. Raises UserError where it is none of LoRA's."""
    try:
        config = json.loads((folder / CONFIG).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / CONFIG}: cannot be read as JSON ({type(error).__name__})") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise UserError(f"{folder}: an adapter of kind {kind}, expected LORA")
    for name in OTHER_KINDS:
        if config.get(name):
            raise UserError(f"{folder}: {name} is not supported; merge the adapter with peft's merge_and_unload")
    if not config.get("base_model_name_or_path"):
        raise UserError(f"{folder / CONFIG}: names no base_model_name_or_path")
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
    return {"architectures": [f"XLMRoberta{ending}"]} | labels(len(out))


def labels(count: int) -> dict[str, Any]:
    """The adapter's files keep none: they are called as transformers calls those without a name."""
    return {
        "id2label": {str(place): f"LABEL_{place}" for place in range(count)},
        "label2id": {f"LABEL_{place}": place for place in range(count)},
    }


def bare(name: str) -> str:
    """Without the encoder's own name in front, which a head puts there."""
    return re.sub(r"^(roberta|bert|model)\.", "", name)
