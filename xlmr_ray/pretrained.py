"""What all the model classes share: a configuration, and weights from and to a folder."""

import copy
import warnings
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from xlmr_ray.checkpoint.files import resolve
from xlmr_ray.checkpoint.folder import read_config
from xlmr_ray.checkpoint.load import LoadReport, load_tensors
from xlmr_ray.checkpoint.save import save_pretrained
from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.errors import UserError
from xlmr_ray.model.attention import attention
from xlmr_ray.model.encoder import SelfAttention


class Pretrained(nn.Module):
    """What all the classes share: a configuration, weights from and to a folder, and fresh weights where there are
    none.
    """

    config: XLMRobertaConfig
    load_report: LoadReport | None = None

    def __init__(self, config: XLMRobertaConfig) -> None:
        super().__init__()
        if config.is_decoder:
            raise UserError("config: is_decoder=True is not supported by this class; only the bidirectional encoder is")
        self.config = config

    @classmethod
    def from_config(cls, config: XLMRobertaConfig, *, dtype: torch.dtype | None = None) -> Self:
        """A model with fresh random weights."""
        model = cls(copy.deepcopy(config))
        return model if dtype is None else model.to(dtype)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        config: XLMRobertaConfig | None = None,
        dtype: torch.dtype | str | None = "auto",
        device: torch.device | str = "cpu",
        attn_implementation: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        cache_dir: str | Path | None = None,
        ignore_mismatched_sizes: bool = False,
        **overrides: Any,
    ) -> Self:
        """Loads a checkpoint: a folder, an object store's prefix, a hub id (each with an optional `@revision`) or
        `embedded:mini`.

        `overrides` are parameters of XLMRobertaConfig (`num_labels`, `id2label`, `problem_type`, ...). `dtype="auto"`
        is that of the files. A head whose tensors are not in the files, or of another size with
        `ignore_mismatched_sizes`, is made anew and warned of; what was found and what was not is in
        `model.load_report`. The model comes back in evaluation mode.
        """
        folder = resolve(source, revision=revision, local_files_only=local_files_only, cache_dir=cache_dir)
        if config is None:
            config = XLMRobertaConfig.from_dict(read_config(folder), **overrides)
        elif overrides:
            raise UserError(f"from_pretrained: give config= or {', '.join(overrides)}, not both")
        if attn_implementation is not None:
            config = copy.deepcopy(config)
            config.attn_implementation = attn_implementation
        with torch.device("meta"):
            model = cls(config)
        if isinstance(dtype, str):
            named = None if dtype == "auto" else getattr(torch, dtype, dtype)
            if named is not None and not isinstance(named, torch.dtype):
                raise UserError(f"dtype {dtype!r} is none of torch's; float32, float16 and bfloat16 are usual")
            dtype = named
        model.load_report = load_tensors(
            model,
            folder,
            dtype=dtype,
            device=device,
            new_head=True,
            ignore_mismatched_sizes=ignore_mismatched_sizes,
            init=model.init_weights,
        )
        fresh = [name for name in model.load_report.missing if not name.startswith(("pooler.", "roberta.pooler."))]
        if fresh:
            warnings.warn(
                f"{folder}: no weights for {', '.join(fresh)}: made anew, train them before use", stacklevel=2
            )
        return model.eval()

    def save_pretrained(self, folder: str | Path, *, max_shard_size: int | str = "5GB") -> None:
        """Writes `config.json` and safetensors that transformers loads."""
        config = copy.deepcopy(self.config)
        config.architectures = [type(self).__name__]
        config.dtype = str(self.dtype).removeprefix("torch.")
        save_pretrained(self, config, Path(folder), max_shard_size=max_shard_size)

    @torch.no_grad()
    def init_weights(self, module: nn.Module) -> None:
        """Fresh weights of one module, by the reference's rules: normal with `initializer_range`, biases 0, norms 1,
        padding rows 0.
        """
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.normal_(0.0, self.config.initializer_range)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            module.weight[module.padding_idx].zero_()
        if isinstance(module, nn.LayerNorm):
            module.weight.fill_(1.0)
        bias = getattr(module, "bias", None)
        if isinstance(bias, nn.Parameter):
            bias.zero_()

    def set_attn_implementation(self, name: str) -> None:
        """Chooses the attention back end of every layer."""
        self.config.attn_implementation = name
        for module in self.modules():
            if isinstance(module, SelfAttention):
                module.attend = attention(name)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())
