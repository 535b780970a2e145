"""What all the model classes share: a configuration, and weights from and to a folder."""

import contextlib
import copy
import functools
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint
from torch.utils.hooks import RemovableHandle

from xlmr_ray.checkpoint.device_map import CPU, DeviceMap, connect, device_of
from xlmr_ray.checkpoint.files import resolve
from xlmr_ray.checkpoint.folder import ENCODER_DIGEST, class_of, read_config
from xlmr_ray.checkpoint.load import LoadReport, load_tensors
from xlmr_ray.checkpoint.names import names_of_files
from xlmr_ray.checkpoint.push import Pushed
from xlmr_ray.checkpoint.quantization import OUTPUT_EMBEDDINGS, BitsAndBytesConfig
from xlmr_ray.checkpoint.save import save_pretrained
from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.errors import UserError
from xlmr_ray.foreign import Foreign
from xlmr_ray.model.attention.backends import attention
from xlmr_ray.model.encoder import Encoder
from xlmr_ray.model.generation.config import GenerationConfig
from xlmr_ray.model.meta_device import shapes_only
from xlmr_ray.modeling.loading import (
    LOADING,
    check_names,
    configuration,
    dtype_of,
    folder_of,
    loading_info,
    placement,
    quantization_of,
)
from xlmr_ray.stand_in import StandIn

SAVING = Foreign(
    "save_pretrained",
    ignored={
        "safe_serialization": "weights are always written as safetensors",
        "save_function": "each process writes by itself, or does not",
        "save_peft_format": "adapters are peft's models, which save themselves",
        "save_original_format": "names are always those of the published checkpoints",
    },
    refused={
        "variant": "a folder has one set of weights: save another one elsewhere",
        "distributed_checkpoint": "give the whole state_dict, gathered from all processes",
    },
)


class Pretrained(StandIn, Pushed, nn.Module):
    """What all the classes share: a configuration, weights from and to a folder, and fresh weights where there are
    none.
    """

    stands_in_for = ("transformers.modeling_utils", "PreTrainedModel")
    config: XLMRobertaConfig
    load_report: LoadReport | None = None
    # Of the class that has such a file beside its configuration.
    generation_config: GenerationConfig | None = None
    main_input_name = "input_ids"
    # What transformers' Trainer asks: it may pass `num_items_in_batch`.
    accepts_loss_kwargs = True
    # What libraries ask of the class of a PreTrainedModel: how layers may be wrapped or recomputed, what is kept back.
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = False
    _can_compile_fullgraph = True
    _no_split_modules: Sequence[str] = ("EmbeddingLayer", "Layer")
    _tied_weights_keys: Mapping[str, str] | None = None
    _keep_in_fp32_modules: Sequence[str] | None = None
    _keys_to_ignore_on_save: Sequence[str] | None = None
    _keys_to_ignore_on_load_missing: Sequence[str] | None = None
    _keys_to_ignore_on_load_unexpected: Sequence[str] | None = None
    _require_grads_hook: RemovableHandle | None = None

    def __init__(self, config: XLMRobertaConfig) -> None:
        super().__init__()
        self.config = config
        if config.bert_layout:
            self.register_load_state_dict_pre_hook(names_of_files)  # type: ignore[no-untyped-call]

    @classmethod
    def from_config(
        cls,
        config: XLMRobertaConfig,
        *,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        attn_implementation: str | None = None,
    ) -> Self:
        """A model with fresh random weights, in training mode."""
        config = copy.deepcopy(config)
        if attn_implementation is not None:
            config.attn_implementation = attn_implementation
        model = cls(config)
        wanted = dtype_of(dtype, torch_dtype)
        return model if wanted is None else model.to(wanted)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path | None,
        *,
        config: XLMRobertaConfig | str | Path | None = None,
        state_dict: Mapping[str, Tensor] | None = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        device_map: str | int | torch.device | DeviceMap | None = None,
        max_memory: Mapping[int | str, int | str] | None = None,
        quantization_config: BitsAndBytesConfig | Mapping[str, Any] | None = None,
        attn_implementation: str | None = None,
        generation_config: GenerationConfig | None = None,
        revision: str | None = None,
        subfolder: str = "",
        local_files_only: bool = False,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        ignore_mismatched_sizes: bool = False,
        output_loading_info: bool = False,
        add_pooling_layer: bool | None = None,
        **overrides: Any,
    ) -> Any:
        """Loads a checkpoint: a folder, an object store's prefix, a hub id (each with an optional `@revision`) or
        `embedded:mini`; a head saved beside its encoder is `ENCODER/heads/NAME`.

        `overrides` are parameters of XLMRobertaConfig (`num_labels`, `id2label`, `problem_type`, ...), or arguments of
        transformers without use here (LOADING). `config` goes before the checkpoint's own, and with a `state_dict` its
        tensors before those of the files, which may be None then. `dtype` (once `torch_dtype`) is the files' own where
        it is None or "auto". `device_map` is a device, "auto" (layers over the GPUs that there are by their free
        memory, or by `max_memory`, the rest on the CPU), or a map of module names to devices, "" for all the others.
        `quantization_config` quantizes while loading, on a GPU if there is one and no device is named; a checkpoint
        that is quantized needs none.

        A head whose tensors are not in the files, or of another size with `ignore_mismatched_sizes`, is made anew and
        warned of; what was found and what was not is in `model.load_report`, and with `output_loading_info` also
        beside the model, by transformers' names. The model comes back in evaluation mode. Raises UserError, one line.
        """
        wanted = dtype_of(dtype, torch_dtype)
        quantization = quantization_of(quantization_config)
        overrides = LOADING.left(overrides)
        check_names(overrides)
        config = configuration(config)
        folder = None
        if pretrained_model_name_or_path is not None:
            folder = resolve(
                pretrained_model_name_or_path,
                revision=revision,
                subfolder=subfolder,
                local_files_only=local_files_only,
                force_download=force_download,
                cache_dir=cache_dir,
                token=token,
                weights=state_dict is None,
            )
        elif config is None or state_dict is None:
            raise UserError("from_pretrained: name a checkpoint, or give both config= and state_dict=")
        if config is None:
            assert folder is not None
            config = XLMRobertaConfig.from_dict(read_config(folder), **overrides)
        elif overrides:
            raise UserError(f"from_pretrained: give config= or {', '.join(overrides)}, not both")
        config = copy.deepcopy(config)
        if attn_implementation is not None:
            config.attn_implementation = attn_implementation
        own = {} if add_pooling_layer is None else {"add_pooling_layer": add_pooling_layer}
        if not own.keys() <= inspect.signature(cls).parameters.keys():
            raise UserError(f"from_pretrained: {cls.__name__} has no add_pooling_layer; XLMRobertaModel has")
        with shapes_only():
            model = cls(config, **own)
        quantized_on_disk = bool(config.extra.get("quantization_config"))
        devices = placement(model, device, device_map, max_memory, wanted, quantization, quantized_on_disk)
        if quantization is not None and quantization.llm_int8_enable_fp32_cpu_offload and isinstance(devices, Mapping):
            skipped = [*(quantization.llm_int8_skip_modules or OUTPUT_EMBEDDINGS)]
            skipped += [name for name in devices if device_of(devices, name).type == CPU]
            quantization = replace(quantization, llm_int8_skip_modules=skipped)
        with folder_of(state_dict, config, folder) as files:
            report = load_tensors(
                model,
                files,
                dtype=wanted,
                device=devices,
                quantization=quantization,
                new_head=True,
                ignore_mismatched_sizes=ignore_mismatched_sizes,
                init=model.init_weights,
            )
        model.load_report = report = replace(report, folder=folder or Path("state_dict"))
        if model.generation_config is not None:
            stored = None if folder is None else GenerationConfig.from_pretrained(folder)
            model.generation_config = GenerationConfig.of(generation_config) or stored or model.generation_config
        if isinstance(devices, Mapping):
            connect(model, devices)
        config.extra.pop("quantization_config", None)
        if report.quantization is not None:
            config.extra["quantization_config"] = report.quantization.to_dict()
        fresh = [name for name in report.missing if not name.startswith("pooler.")]
        if fresh:
            warnings.warn(
                f"{report.folder}: no weights for {', '.join(fresh)}: made anew, train them before use", stacklevel=2
            )
        return (model.eval(), loading_info(report)) if output_loading_info else model.eval()

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        push_to_hub: bool = False,
        max_shard_size: int | str = "5GB",
        **others: Any,
    ) -> None:
        """Writes `config.json` and safetensors that transformers loads; quantized layers as they are.

        `state_dict`: these tensors and not the model's own. Of several processes only the main one writes. `others` are
        arguments of transformers without use here (SAVING), and with `push_to_hub` those of that method; `repo_id` is
        then the folder's name unless given.
        """
        others = SAVING.left(others)
        if others and not push_to_hub:
            raise UserError(f"save_pretrained: no argument {', '.join(others)}")
        if not is_main_process:
            return
        folder = Path(save_directory)
        config = self.config_to_save()
        save_pretrained(self, config, folder, max_shard_size=max_shard_size, state_dict=state_dict)
        if self.generation_config is not None:
            self.generation_config.save_pretrained(folder)
        if push_to_hub:
            self.push_to_hub(**{"repo_id": folder.name, **others})

    _from_config = from_config

    @classmethod
    def is_remote_code(cls) -> bool:
        """Whether the class came with a checkpoint, which transformers asks of a PreTrainedModel: no."""
        return False

    @classmethod
    def is_custom_code(cls) -> bool:
        """What peft asks by way of transformers: True, as no name has to be converted to another version's."""
        return True

    @classmethod
    def can_generate(cls) -> bool:
        """Whether there is a `generate`."""
        return hasattr(cls, "generate")

    def config_to_save(self) -> XLMRobertaConfig:
        """The configuration, with the class and the dtype of the weights in it."""
        config = copy.deepcopy(self.config)
        config.extra.pop(ENCODER_DIGEST, None)
        if config.extra.get("quantization_config", {}).get("llm_int8_has_fp16_weight"):
            config.extra.pop("quantization_config")  # these layers are written as the float weights that they have
        config.architectures = [class_of(type(self).__name__, config.model_type)]
        config.dtype = str(self.dtype).removeprefix("torch.")
        return config

    @torch.no_grad()
    def init_weights(self, module: nn.Module | None = None) -> None:
        """Fresh weights of one module, by transformers' rules: normal with `initializer_range`, biases 0, norms 1,
        padding rows 0. Without one, of all that a class of the user's has beside our models, which have theirs, and
        that have not been made before: weights that were loaded or trained stay.
        """
        if module is None:
            for own in (one for one in self.children() if not isinstance(one, Pretrained)):
                for part in own.modules():
                    if not getattr(part, "made", type(self).__module__.startswith("xlmr_ray.")):
                        self.init_weights(part)
                    part.__dict__["made"] = True
            self.tie_weights()
            return
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.normal_(0.0, self.config.initializer_range)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            module.weight[module.padding_idx].zero_()
        if isinstance(module, nn.LayerNorm):
            module.weight.fill_(1.0)
        bias = getattr(module, "bias", None)
        if isinstance(bias, nn.Parameter):
            bias.zero_()

    def post_init(self) -> None:
        """What a class of the user's calls at the end of its `__init__`."""
        self.init_weights()

    def set_attn_implementation(self, name: str) -> None:
        """Chooses the attention back end of every layer."""
        chosen = attention(name)
        self.config.attn_implementation = name
        for module in self.modules():
            if hasattr(module, "attend"):
                module.attend = chosen  # type: ignore[assignment]

    @property
    def base_model_prefix(self) -> str:
        """What the encoder is called in the classes with a head."""
        return "bert" if self.config.bert_layout else "roberta"

    @property
    def base_model(self) -> nn.Module:
        """The bare encoder: `roberta` (`bert` in that layout), or the model itself where it is that."""
        base = self._modules.get(self.base_model_prefix)
        return self if base is None else base

    def get_input_embeddings(self) -> nn.Embedding:
        found = self.base_model.get_submodule("embeddings.word_embeddings")
        assert isinstance(found, nn.Embedding)
        return found

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.base_model.set_submodule("embeddings.word_embeddings", value)

    def get_output_embeddings(self) -> nn.Linear | None:
        """The last linear layer of a language model's head, None in other classes."""
        head = self._modules.get("lm_head")
        found = None if head is None else head.get_submodule("decoder")
        return found if isinstance(found, nn.Linear) else None

    def set_output_embeddings(self, value: nn.Linear) -> None:
        head = self.get_submodule("lm_head")
        head.set_submodule("decoder", value)
        head.bias = value.bias

    def tie_weights(self) -> None:
        """Makes the input embeddings the last layer's weight, where the configuration ties them."""
        output = self.get_output_embeddings()
        if output is not None and self.config.tie_word_embeddings:
            output.weight = self.get_input_embeddings().weight

    @torch.no_grad()
    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Adds tokens at the end, or cuts them off there, in the input embeddings and a language model's output.

        New tokens begin as the mean of the old ones (a little noise beside it), or, without `mean_resizing`, as fresh
        weights. Returns the input embeddings; they are as they were where no number is given.
        """
        old = self.get_input_embeddings()
        size = old.num_embeddings if new_num_tokens is None else new_num_tokens
        if pad_to_multiple_of is not None:
            size = -(-size // pad_to_multiple_of) * pad_to_multiple_of
        if size < 1:
            raise UserError(f"resize_token_embeddings: expected at least one token, got {size}")
        if size == old.num_embeddings:
            return old
        fresh = None if mean_resizing else self.config.initializer_range
        output = self.get_output_embeddings()
        with torch.device("meta"):
            words = nn.Embedding(size, old.embedding_dim, padding_idx=old.padding_idx)
        words.weight = nn.Parameter(resized(old.weight, size, fresh), requires_grad=old.weight.requires_grad)
        self.set_input_embeddings(words)
        if output is not None:
            with torch.device("meta"):
                decoder = nn.Linear(output.in_features, size)
            decoder.weight = nn.Parameter(resized(output.weight, size, fresh), output.weight.requires_grad)
            # As in transformers, the bias has its own mean where the weight is its own, and is 0 where it is not.
            zero = self.config.tie_word_embeddings or not mean_resizing
            decoder.bias = nn.Parameter(resized(output.bias, size, 0.0 if zero else None), output.bias.requires_grad)
            self.set_output_embeddings(decoder)
            self.tie_weights()
        self.config.vocab_size = size
        return words

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: Mapping[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """In training, the activations of every so many layers are not kept but computed again in the backward pass;
        with `offload`, what a layer was given waits in the host's memory.

        The keywords are those of `torch.utils.checkpoint.checkpoint`, but for `use_reentrant`: of its two ways, which
        give the same gradients, the one that is right for every input is taken.
        """
        how = {**(activation_checkpointing_kwargs or {}), "use_reentrant": False}
        self.recompute(functools.partial(recomputed, offload, how), every_n_layers)

    def activation_checkpointing_disable(self) -> None:
        """All activations are kept again."""
        self.recompute(None)

    def recompute(self, how: Callable[..., Any] | None, every: int = 1) -> None:
        """Sets how the encoder's layers are called in training, None for as ever."""
        encoder = self.base_model.get_submodule("encoder")
        assert isinstance(encoder, Encoder)
        encoder.recompute, encoder.recompute_every = how, every

    @property
    def is_activation_checkpointing(self) -> bool:
        return self.base_model.get_submodule("encoder").recompute is not None

    # The older name.

    def gradient_checkpointing_enable(
        self,
        gradient_checkpointing_kwargs: Mapping[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, every_n_layers, offload)

    gradient_checkpointing_disable = activation_checkpointing_disable
    is_gradient_checkpointing = is_activation_checkpointing

    def enable_input_require_grads(self) -> None:
        """Embeddings of words have a gradient though their weights are frozen, so that it reaches what comes before."""
        self.disable_input_require_grads()
        hook = self.get_input_embeddings().register_forward_hook(lambda module, given, out: out.requires_grad_(True))
        self._require_grads_hook = hook

    def disable_input_require_grads(self) -> None:
        if self._require_grads_hook is not None:
            self._require_grads_hook.remove()
        self._require_grads_hook = None

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the first parameter, the word embeddings, which are never quantized."""
        return next(self.parameters()).dtype

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """How many numbers the model has, quantized ones counted as what they stand for. An embedding that is a last
        layer's weight, too, is not excluded.
        """
        embeddings = [m.weight for m in self.modules() if isinstance(m, nn.Embedding)] if exclude_embeddings else []
        left_out = {id(weight) for weight in embeddings} - {id(getattr(self.get_output_embeddings(), "weight", None))}
        counted = [p for p in self.parameters() if id(p) not in left_out and (p.requires_grad or not only_trainable)]
        states = [getattr(p, "quant_state", None) for p in counted]
        return sum(
            p.numel() if state is None else state.shape.numel() for p, state in zip(counted, states, strict=True)
        )

    def get_memory_footprint(self) -> int:
        """Bytes of parameters, buffers, and the scales of quantized weights; tied ones once."""
        tensors = {id(t): t for t in self.state_dict(keep_vars=True).values()}
        return sum(t.numel() * t.element_size() for t in tensors.values())


def recomputed(offload: bool, how: Mapping[str, Any], layer: nn.Module, *arguments: Any) -> Any:
    """What a layer gives, its activations computed again in the backward pass; `offload`: see
    `activation_checkpointing_enable`.
    """
    with save_on_cpu(pin_memory=torch.cuda.is_available()) if offload else contextlib.nullcontext():
        return checkpoint(layer, *arguments, **how)


def resized(tensor: Tensor, size: int, fresh: float | None) -> Tensor:
    """A copy of the first `size` entries `(N, ...)`. New ones are normal with deviation `fresh` around 0; where that is
    None, the mean of the old ones with a hundred-thousandth of their deviation, so that no two are the same.
    """
    if size <= len(tensor):
        return tensor[:size].clone()
    added = torch.randn(size - len(tensor), *tensor.shape[1:], device=tensor.device)
    if fresh is None:
        old = tensor.float()
        added = old.mean(0) + 1e-5 * old.std(0, correction=0) * added
    else:
        added *= fresh
    return torch.cat([tensor, added.to(tensor.dtype)])
