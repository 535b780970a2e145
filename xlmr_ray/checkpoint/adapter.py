"""A folder of peft's with a LoRA adapter -> a checkpoint's folder with the adapter in its weights, or beside them."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlmr_ray.checkpoint.adapter_files import (
    MODULES,
    SENTENCES,
    TOKENIZER,
    VOCABULARIES,
    has_tokenizer,
    own_files,
)
from xlmr_ray.checkpoint.digest import encoder_digest, weights_digest
from xlmr_ray.checkpoint.folder import (
    CALIBRATION,
    ENCODER,
    ENCODER_DIGEST,
    HEADS,
    LORA,
    encoder_folder,
    has_adapter,
    model_folder,
)
from xlmr_ray.checkpoint.names import DECODER_WEIGHT, WORDS, is_encoder, modern
from xlmr_ray.checkpoint.tensors import ADAPTER, BIN, BIN_INDEX, INDEX, SINGLE, open_tensors
from xlmr_ray.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

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


def brings_head(folder: Path) -> bool:
    """Whether a head was trained, and saved, with the adapter. Raises UserError where there is none of LoRA's."""
    return bool(adapter_head(read(folder), weight_changes(folder)[1]))


def merged_checkpoint(folder: Path, base_of: Callable[[str], Path], cache: Path) -> Path:
    """The base checkpoint with the adapter of `folder` in its weights, as `merge_and_unload` of peft makes it, under a
    name made of both in `cache`; made only once. `base_of` finds the base by the name that the adapter has for it.

    Raises UserError, one line, for another kind of adapter than LoRA, and for one that does not fit its base.
    """
    return made_once(folder, read(folder), base_of(base_name(folder)), cache, beside=False)


def beside(folder: Path, base: Path, cache: Path) -> Path:
    """A folder as of a head beside its encoder, which is the `base`'s: what the adapter of `folder` has for the
    encoder's linear layers is in LORA, and its weights are not copied. For `Engine.load`; made only once, in `cache`.

    Raises UserError, one line, as `merged_checkpoint` does, and for one that changes more of the encoder than that.
    """
    return made_once(folder, read(folder), base, cache, beside=True)


def made_once(folder: Path, config: Mapping[str, Any], base: Path, cache: Path, *, beside: bool) -> Path:
    """The folder of the base with the adapter, merged or `beside` it."""
    from safetensors.torch import save_file

    sources = [*filter(None, (encoder_folder(base), base))]  # a head's tokenizer is its encoder's
    own = own_files(folder)
    modules = MODULES in own
    content = hashlib.sha256((folder / WEIGHTS).read_bytes() + json.dumps(config, sort_keys=True).encode())
    for source in sources:  # the same weights may come with another tokenizer or other labels
        for file in sorted(file for file in source.rglob("*") if file.suffix in (".json", ".model")):
            if HEADS not in file.relative_to(source).parts and file.name != CALIBRATION:
                content.update(file.read_bytes())
    for name, file in own.items():
        content.update(name.encode() + file.read_bytes())
    if beside:
        content.update(f"beside {sources[0].resolve()}".encode())
    target = cache / "adapters" / f"{weights_digest(base)[:16]}-{content.hexdigest()[:16]}"
    if target.exists():
        return target
    if has_adapter(base):
        raise UserError(f"{folder}: its base has an adapter beside it already; merge that one first")
    if beside and model_folder(base) != base:
        raise UserError(f"{base}: its model is in a folder inside it: no adapter beside it; set merge: true")
    pairs = low_rank(folder, config, base) if beside else {}
    state, architecture = merged_state(folder, config, base, lambda name: not (beside and is_encoder(name)))
    target.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=".merging.", dir=target.parent))
    try:
        # What was measured of the base's scores does not hold of those with the adapter.
        left = ["*.safetensors", "*.bin", HEADS, CALIBRATION]
        left += [*(VOCABULARIES if beside or has_tokenizer(folder) else ()), *(SENTENCES if modules else ())]
        for source in sources:
            copied = model_folder(source) if modules else source
            shutil.copytree(copied, made, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*left))
        inner = made if modules else made / model_folder(base).relative_to(base)
        for index in (INDEX, BIN_INDEX):
            (inner / index).unlink(missing_ok=True)
        described = json.loads((inner / "config.json").read_text("utf-8"))
        count = len(architecture.get("id2label") or ())
        if count and not own_head(config) and len(described.get("id2label") or ()) == count:
            architecture = {"architectures": architecture["architectures"]}  # the base's names, as transformers has it
        described |= architecture
        if beside:
            described[ENCODER_DIGEST] = encoder_digest(sources[0])
            (made / ENCODER).symlink_to(sources[0].resolve(), target_is_directory=True)
            save_file(pairs, made / LORA, metadata={"format": "pt"})
            if described.get("tie_word_embeddings", True):
                state = without_decoder(folder, base, state)
        (inner / "config.json").write_text(json.dumps(described, indent=2), "utf-8")
        save_file(state, inner / SINGLE, metadata={"format": "pt"})
        for file in (f for pattern in ("*.safetensors", "*.bin") for f in base.rglob(pattern)):
            inside = file.relative_to(base)
            if file.parent != model_folder(base) and not modules and HEADS not in inside.parts:
                shutil.copyfile(file, made / inside)  # dense layers of sentence models
        for name, file in own.items():
            where = (inner if name in TOKENIZER else made) / name
            where.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, where)
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


def merged_state(
    folder: Path, config: Mapping[str, Any], base: Path, wanted: Callable[[str], bool]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of the merged checkpoint by the base's names, those whose `bare` names are `wanted`, and what its
    configuration has to say of its head.
    """
    files = open_tensors(model_folder(base))
    state = {name: files.read(name).clone() for name in files.stored if wanted(bare(name))}
    by_bare = {bare(name): name for name in state}
    pairs, whole = weight_changes(folder)
    for name, tensor in whole.items():
        if not wanted(bare(name)):
            continue
        if bare(name) not in by_bare and is_encoder(bare(name)):
            raise UserError(f"{folder}: {name}, which {base} has not")
        state[by_bare.get(bare(name), name)] = tensor
    for module, parts in pairs.items():
        if not wanted(bare(module)):
            continue
        place = by_bare.get(bare(module))
        if place is None:
            raise UserError(f"{folder}: an adapter of {module}, which {base} has not")
        change = delta(folder, config, module.removesuffix(".weight"), parts)
        check_adapter_shape(folder, module, change.shape, state[place].shape)
        state[place] = state[place].float() + change  # in half precision the change would be lost in rounding
    return {name: tensor.contiguous() for name, tensor in state.items()}, adapter_head(config, whole)


def low_rank(folder: Path, config: Mapping[str, Any], base: Path) -> dict[str, Tensor]:
    """What the adapter has for the base's encoder, by canonical name: of a linear layer `NAME.A (r, in)` and `NAME.B
    (out, r)`, whose product is added to its weight; of it or a norm `NAME.bias (out)`, added to its bias. In float32.

    Raises UserError for a change of something else in the encoder.
    """
    files = open_tensors(model_folder(base))
    on_disk = {bare(name): name for name in files.stored}
    pairs, whole = weight_changes(folder)
    found: dict[str, Tensor] = {}
    for name, tensor in whole.items():
        plain = bare(name)
        if not is_encoder(plain):
            continue
        if not plain.endswith(".bias") or plain not in on_disk:
            raise UserError(f"{folder}: {name} is another one than the base's; beside it only linear layers are: "
                            "set merge: true")  # fmt: skip
        check_adapter_shape(folder, name, tensor.shape, files.stored[on_disk[plain]].shape)
        if (change := tensor.float() - files.read(on_disk[plain]).float()).any():
            found[plain] = change
    for module, parts in pairs.items():
        plain = bare(module)
        if not is_encoder(plain):
            continue
        if plain not in on_disk:
            raise UserError(f"{folder}: an adapter of {module}, which {base} has not")
        if "embedding_A" in parts or config.get("fan_in_fan_out"):
            raise UserError(f"{folder}: {module} is no linear layer as the others; set merge: true")
        name = module.removesuffix(".weight")
        first, second, scale = factors(folder, config, name, parts)
        out, width = files.stored[on_disk[plain]].shape
        check_adapter_shape(folder, module, (second.shape[0], first.shape[1]), (out, width))
        found[f"{plain.removesuffix('.weight')}.A"] = first.contiguous()
        found[f"{plain.removesuffix('.weight')}.B"] = (second * scale).contiguous()
    return found


def without_decoder(folder: Path, base: Path, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a head without the last layer of a language model's, which is the word embeddings of the base's
    encoder. Raises UserError where it is another one.
    """
    import torch

    kept = {name: one for name, one in state.items() if modern(bare(name)) != DECODER_WEIGHT}
    if len(kept) < len(state):
        files = open_tensors(model_folder(base))
        on_disk = {modern(bare(name)): name for name in files.stored}
        words = files.read(on_disk.get(WORDS) or on_disk[DECODER_WEIGHT]).float()
        if not all(torch.equal(one.float(), words) for name, one in state.items() if name not in kept):
            raise UserError(
                f"{folder}: {DECODER_WEIGHT} is another one than the word embeddings that {base} has for it: "
                "set merge: true"
            )
    return kept


def weight_changes(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """The adapter's pairs by the name of the weight that they change, and the tensors that it has whole."""
    from safetensors.torch import load_file

    pairs: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    for name, tensor in load_file(folder / WEIGHTS).items():
        plain = name.removeprefix(PREFIX)
        if split := re.fullmatch(r"(.+)\.lora_(embedding_)?([AB])(\.weight)?", plain):
            pairs.setdefault(f"{split[1]}.weight", {})[f"{split[2] or ''}{split[3]}"] = tensor
        elif "lora_" in plain:
            raise UserError(f"{folder}: {name} is no part of LoRA that is supported")
        else:
            whole[plain.replace(".modules_to_save.default", "").replace(".base_layer", "")] = tensor
    return pairs, whole


def check_adapter_shape(folder: Path, module: str, got: Sequence[int], expected: Sequence[int]) -> None:
    if tuple(got) != tuple(expected):
        raise UserError(
            f"{folder}: the adapter of {module} is of shape {list(got)}, the base's weight of {list(expected)}"
        )


def delta(folder: Path, config: Mapping[str, Any], module: str, parts: Mapping[str, Tensor]) -> Tensor:
    """What the adapter adds to a weight `(out, in)`; to a table of embeddings `(tokens, width)`."""
    import torch

    first, second, scale = factors(folder, config, module, parts)
    product = second @ first * scale
    return torch.as_tensor(product.T if "embedding_A" in parts or config.get("fan_in_fan_out") else product)


def factors(
    folder: Path, config: Mapping[str, Any], module: str, parts: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor, float]:
    """A `(r, in)`, B `(out, r)` and what their product is multiplied with."""
    kind = "embedding_" if "embedding_A" in parts else ""
    if {f"{kind}A", f"{kind}B"} != parts.keys():
        raise UserError(f"{folder}: {module} has {', '.join(sorted(parts))}, expected lora_A and lora_B")
    first, second = parts[f"{kind}A"].float(), parts[f"{kind}B"].float()
    rank = first.shape[0]
    alpha = by_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", 8))
    return first, second, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def by_pattern(patterns: Mapping[str, float] | None, module: str, usual: float) -> float:
    """The value for a module where a pattern ends as its name does, as peft matches them."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return usual


def adapter_head(config: Mapping[str, Any], whole: Mapping[str, Tensor]) -> dict[str, Any]:
    """The architecture of a head that came with the adapter, and how many labels it has; {} where none did."""
    ending = ARCHITECTURES.get(str(config.get("task_type")))
    outputs = (one for name, one in whole.items() if re.search(r"(classifier|out_proj|qa_outputs)\.weight$", name))
    out = min(outputs, key=len, default=None)
    if ending is None or out is None:
        return {}
    return {"architectures": [f"XLMRoberta{ending}"]} | (own_head(config) or numbered_label_maps(len(out)))


def own_head(config: Mapping[str, Any]) -> dict[str, Any]:
    """The head's labels and kind of problem, where a training here (`train/lora.py`) has put them into `auto_mapping`,
    which peft hands on as it is.
    """
    kept = config.get("auto_mapping") or {}
    return {key: kept[key] for key in ("id2label", "label2id", "problem_type") if key in kept}


def numbered_label_maps(count: int) -> dict[str, Any]:
    """The adapter's files keep none: they are called as transformers calls those without a name."""
    return {
        "id2label": {str(index): f"LABEL_{index}" for index in range(count)},
        "label2id": {f"LABEL_{index}": index for index in range(count)},
    }


def bare(name: str) -> str:
    """Without the encoder's own name in front, which a head puts there."""
    return re.sub(r"^(roberta|bert|model)\.", "", name)
