"""Heads beside the frozen encoder that they were trained on: `ENCODER/heads/NAME`, a checkpoint of a few tensors."""

import copy
import re
from pathlib import Path

import torch
from torch import Tensor, nn

from xlmr_ray.checkpoint.digest import encoder_digest
from xlmr_ray.checkpoint.folder import ENCODER_DIGEST, HEADS, class_of, model_folder, read_config
from xlmr_ray.checkpoint.match import FLOATS
from xlmr_ray.checkpoint.names import DECODER_WEIGHT, canonical_names, is_encoder, is_pooler, module_name
from xlmr_ray.checkpoint.quantization import companions
from xlmr_ray.checkpoint.save import state_to_save, write_folder
from xlmr_ray.checkpoint.tensors import open_tensors
from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.errors import UserError

NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


def save_head(module: nn.Module, encoder: str | Path, name: str, *, config: XLMRobertaConfig | None = None) -> Path:
    """Writes the head of a model to `ENCODER/heads/NAME`, which loads as a whole checkpoint as long as the encoder
    beside it has the same weights. Returns that folder.

    `module` is one of the model classes, or only a head with its names (`classifier`, `lm_head`, …) and a `config`.
    `config.json` tells the class, the labels and the digest of the encoder. Raises UserError where there is no head,
    or where the module's encoder is not the folder's: it was trained too, and belongs into another folder.
    """
    folder = Path(encoder)
    if not NAME.fullmatch(name):
        raise UserError(f"head {name!r}: expected letters, digits, '.', '_' and '-'")
    config = copy.deepcopy(config or getattr(module, "config", None))
    if config is None:
        raise UserError(f"save_head: {type(module).__name__} has no config: give one, for its labels")
    where = model_folder(folder)
    beside = XLMRobertaConfig.from_dict(read_config(where))
    if config.hidden_size != beside.hidden_size:
        raise UserError(f"{folder}: hidden_size {beside.hidden_size}, the head's is {config.hidden_size}")
    state = {module_name(key): tensor for key, tensor in state_to_save(module).items()}
    head = {key: tensor for key, tensor in state.items() if not is_encoder(key)}
    if config.tie_word_embeddings:
        head.pop(DECODER_WEIGHT, None)  # the encoder's word embeddings
    if all(is_pooler(key) for key in head):
        raise UserError(f"save_head: {type(module).__name__} has no head; save_pretrained writes the encoder")
    _check_frozen({key: tensor for key, tensor in state.items() if key not in head}, where)

    config.architectures = [class_of(_class_of_head(module, head, config), config.model_type)]
    config.dtype = next((str(t.dtype).removeprefix("torch.") for t in head.values() if t.dtype in FLOATS), None)
    config.extra[ENCODER_DIGEST] = encoder_digest(folder)
    target = folder / HEADS / name
    write_folder(head, config, target)
    return target


def _check_frozen(state: dict[str, Tensor], where: Path) -> None:
    """Raises UserError where an encoder's tensors are not those of the files, in the dtype that they have here."""
    tensors = open_tensors(where)
    on_disk = canonical_names(tensors.stored, str(where)).on_disk
    # Layers that were quantized while loading cannot be seen in the files any more.
    made = {layer: parts for layer, parts in companions(state).items() if not companions(on_disk).get(layer)}
    skipped = {f"{layer}.weight" for layer in made} | {key for parts in made.values() for key in parts.values()}
    for key, tensor in state.items():
        if key in skipped:
            continue
        if key not in on_disk:
            raise UserError(f"{where}: no {key}, which the module's encoder has: it is another encoder")
        if not torch.equal(tensor.detach().cpu(), tensors.read(on_disk[key]).to(tensor.dtype)):
            raise UserError(
                f"{where}: {key} differs from the module's: the encoder was trained, too; "
                "write the whole model with save_pretrained"
            )


def _class_of_head(module: nn.Module, head: dict[str, Tensor], config: XLMRobertaConfig) -> str:
    """Which of the model classes a head is of: the module's own, or the one that its names tell."""
    if type(module).__name__.startswith("XLMRobertaFor"):
        return type(module).__name__
    kinds = {key.split(".")[0] for key in head}
    if "lm_head" in kinds:
        return "XLMRobertaForCausalLM" if config.is_decoder else "XLMRobertaForMaskedLM"
    if "qa_outputs" in kinds:
        return "XLMRobertaForQuestionAnswering"
    if "pooler" in kinds and not config.bert_layout:
        return "XLMRobertaForMultipleChoice"
    if "classifier" in kinds:
        deep = "pooler" in kinds or any(key.startswith("classifier.out_proj.") for key in head)
        return "XLMRobertaForSequenceClassification" if deep else "XLMRobertaForTokenClassification"
    raise UserError(f"save_head: a head of {', '.join(sorted(kinds))} is none of the model classes'")
