"""A module and its configuration into a folder that transformers loads."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from xlmr_ray.checkpoint.names import DECODER_BIAS, DECODER_WEIGHT, bert_name, unfused
from xlmr_ray.checkpoint.tensors import BIN, BIN_INDEX, INDEX, SINGLE
from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.errors import UserError


def save_pretrained(
    module: nn.Module,
    config: XLMRobertaConfig,
    folder: Path,
    *,
    max_shard_size: int | str = "5GB",
    state_dict: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes `config.json` and safetensors: one file, or shards of at most `max_shard_size` (bytes, or "200MB") and
    their index.

    Tied parameters are written once, fused q, k and v as three. The tensors are those of a `state_dict` where one is
    given: gathered from several devices, say, or only some. A new folder appears whole or not at all. In one that
    exists only the configuration and the weights are replaced, the old weights leaving first: cut short, it has none,
    never a mixture.
    """
    write_folder(state_to_save(module, state_dict), config, folder, max_shard_size=max_shard_size)


def write_folder(
    state: Mapping[str, Tensor], config: XLMRobertaConfig, folder: Path, *, max_shard_size: int | str = "5GB"
) -> None:
    """As `save_pretrained`, for tensors by their names in the module."""
    folder = Path(folder)
    if config.bert_layout:
        state = {bert_name(name): tensor for name, tensor in state.items()}
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: a file, where a folder is to be written")
    from huggingface_hub import split_torch_state_dict_into_shards  # only who saves waits for this import

    try:
        plan = split_torch_state_dict_into_shards(
            dict(state), filename_pattern="model{suffix}.safetensors", max_shard_size=max_shard_size
        )
    except ValueError as error:
        raise UserError(f"max_shard_size {max_shard_size!r}: {error}") from None
    folder.parent.mkdir(parents=True, exist_ok=True)
    temp = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    temp.chmod(0o755)  # mkdtemp makes it readable by its owner only
    try:
        config.to_json_file(temp / "config.json")
        for file, names in plan.filename_to_tensors.items():
            # Contiguous copies of one shard at a time: views of a larger storage would be refused.
            shard = {name: _copy(state[name]) for name in names}
            save_file(shard, temp / file, metadata={"format": "pt"})
            shutil.copymode(temp / "config.json", temp / file)  # safetensors makes it readable by its owner only
        if plan.is_sharded:
            index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
            (temp / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", "utf-8")
        if not folder.exists():
            temp.rename(folder)
            return
        for name in (INDEX, BIN_INDEX, SINGLE, BIN):
            (folder / name).unlink(missing_ok=True)
        for pattern in ("model-*-of-*.safetensors", "pytorch_model-*-of-*.bin"):
            for old in folder.glob(pattern):
                old.unlink()
        # The file that makes the weights be found comes last.
        for path in sorted(temp.iterdir(), key=lambda p: (p.name == INDEX or p.name == SINGLE, p.name)):
            path.replace(folder / path.name)
    finally:
        shutil.rmtree(temp, ignore_errors=True)


def state_to_save(module: nn.Module, given: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The tensors to write by name, the module's own or those given by its names: tied ones once, under the name that
    transformers keeps.
    """
    state: dict[str, Tensor] = {}
    seen: set[int] = set()
    whole = module.state_dict(keep_vars=True)
    content = whole if given is None else given
    for name in sorted(content, key=lambda n: n.endswith((DECODER_WEIGHT, DECODER_BIAS))):
        own = whole.get(name)
        # Only parameters are tied: quantized layers may share a table, which each of them has in the file.
        if id(own) not in seen:
            if isinstance(own, nn.Parameter):
                seen.add(id(own))
            state |= unfused(name, content[name])
    return state


def _copy(tensor: Tensor) -> Tensor:
    """On the CPU, in one piece, and a plain tensor: quantized parameters move in their own way."""
    return tensor.detach().as_subclass(Tensor).cpu().contiguous().clone()
