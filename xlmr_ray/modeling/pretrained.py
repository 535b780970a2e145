"""What all the model classes share: a configuration, and weights from and to a folder."""

import contextlib
import copy
import difflib
import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint
from torch.utils.hooks import RemovableHandle

from xlmr_ray.checkpoint.device_map import CPU, DeviceMap, Devices, automatic, checked_device, connect, device_of
from xlmr_ray.checkpoint.files import resolve
from xlmr_ray.checkpoint.folder import ENCODER_DIGEST, read_config
from xlmr_ray.checkpoint.load import LoadReport, load_tensors
from xlmr_ray.checkpoint.push import Pushed
from xlmr_ray.checkpoint.quantization import OUTPUT_EMBEDDINGS, BitsAndBytesConfig
from xlmr_ray.checkpoint.save import save_pretrained
from xlmr_ray.config import ALIASES, PARAMETERS, XLMRobertaConfig
from xlmr_ray.errors import UserError
from xlmr_ray.foreign import Foreign
from xlmr_ray.model.attention.backends import attention
from xlmr_ray.model.encoder import Encoder
from xlmr_ray.model.generation.config import GenerationConfig
from xlmr_ray.model.meta_device import shapes_only
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
# Arguments of the reference that ask for what is always done: tensor by tensor, safetensors first, no code of a model.
ALREADY_SO = ("low_cpu_mem_usage", "trust_remote_code", "use_safetensors", "weights_only")
# Those that a misspelt one may mean.
ARGUMENTS = ("attn_implementation", "device_map", "ignore_mismatched_sizes", "local_files_only", "quantization_config")


class Pretrained(StandIn, Pushed, nn.Module):
    """What all the classes share: a configuration, weights from and to a folder, and fresh weights where there are
    none.
    """

    stands_in_for = ("transformers.modeling_utils", "PreTrainedModel")
    config: XLMRobertaConfig
    load_report: LoadReport | None = None
    # Of the class that has such a file beside its configuration.
    generation_config: GenerationConfig | None = None
    base_model_prefix = "roberta"
    main_input_name = "input_ids"
    # What transformers' Trainer asks: it may pass `num_items_in_batch`.
    accepts_loss_kwargs = True
    _keys_to_ignore_on_save: list[str] | None = None
    _require_grads_hook: RemovableHandle | None = None

    def __init__(self, config: XLMRobertaConfig) -> None:
        super().__init__()
        self.config = config

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
        pretrained_model_name_or_path: str | Path,
        *,
        config: XLMRobertaConfig | None = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        device_map: str | int | torch.device | DeviceMap | None = None,
        quantization_config: BitsAndBytesConfig | Mapping[str, Any] | None = None,
        attn_implementation: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        ignore_mismatched_sizes: bool = False,
        add_pooling_layer: bool | None = None,
        **overrides: Any,
    ) -> Self:
        """Loads a checkpoint: a folder, an object store's prefix, a hub id (each with an optional `@revision`) or
        `embedded:mini`; a head saved beside its encoder is `ENCODER/heads/NAME`.

        `overrides` are parameters of XLMRobertaConfig (`num_labels`, `id2label`, `problem_type`, ...). `dtype` (once
        `torch_dtype`) is the files' own where it is None or "auto". `device_map` is a device, "auto" (layers over the
        GPUs that there are by their free memory, the rest on the CPU), or a map of module names to devices, "" for all
        the others. `quantization_config` quantizes while loading, on a GPU if there is one and no device is named; a
        checkpoint that is quantized needs none.

        A head whose tensors are not in the files, or of another size with `ignore_mismatched_sizes`, is made anew and
        warned of; what was found and what was not is in `model.load_report`. The model comes back in evaluation mode.
        Raises UserError, one line.
        """
        wanted = dtype_of(dtype, torch_dtype)
        quantization = quantization_of(quantization_config)
        check_names({name for name in overrides if name not in ALREADY_SO})
        overrides = {name: value for name, value in overrides.items() if name not in ALREADY_SO}
        folder = resolve(
            pretrained_model_name_or_path,
            revision=revision,
            local_files_only=local_files_only,
            cache_dir=cache_dir,
            token=token,
        )
        if config is None:
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
        devices = placement(model, device, device_map, wanted, quantization, quantized_on_disk)
        if quantization is not None and quantization.llm_int8_enable_fp32_cpu_offload and isinstance(devices, Mapping):
            skipped = [*(quantization.llm_int8_skip_modules or OUTPUT_EMBEDDINGS)]
            skipped += [name for name in devices if device_of(devices, name).type == CPU]
            quantization = replace(quantization, llm_int8_skip_modules=skipped)
        report = load_tensors(
            model,
            folder,
            dtype=wanted,
            device=devices,
            quantization=quantization,
            new_head=True,
            ignore_mismatched_sizes=ignore_mismatched_sizes,
            init=model.init_weights,
        )
        model.load_report = report
        if model.generation_config is not None:
            model.generation_config = GenerationConfig.from_pretrained(folder) or model.generation_config
        if isinstance(devices, Mapping):
            connect(model, devices)
        config.extra.pop("quantization_config", None)
        if report.quantization is not None:
            config.extra["quantization_config"] = report.quantization.to_dict()
        fresh = [name for name in report.missing if not name.startswith("pooler.")]
        if fresh:
            warnings.warn(
                f"{folder}: no weights for {', '.join(fresh)}: made anew, train them before use", stacklevel=2
            )
        return model.eval()

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
        config.architectures = [type(self).__name__]
        config.dtype = str(self.dtype).removeprefix("torch.")
        return config

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
        chosen = attention(name)
        self.config.attn_implementation = name
        for module in self.modules():
            if hasattr(module, "attend"):
                module.attend = chosen  # type: ignore[assignment]

    @property
    def base_model(self) -> nn.Module:
        """The bare encoder: `roberta`, or the model itself where it is that."""
        base = self._modules.get(self.base_model_prefix)
        return self if base is None else base

    def get_input_embeddings(self) -> nn.Embedding:
        found = self.base_model.get_submodule("embeddings.word_embeddings")
        assert isinstance(found, nn.Embedding)
        return found

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.base_model.set_submodule("embeddings.word_embeddings", value)

    def get_output_embeddings(self) -> nn.Linear | None:
        """The last product of a language model's head, None in other classes."""
        head = self._modules.get("lm_head")
        found = None if head is None else head.get_submodule("decoder")
        return found if isinstance(found, nn.Linear) else None

    def set_output_embeddings(self, value: nn.Linear) -> None:
        head = self.get_submodule("lm_head")
        head.set_submodule("decoder", value)
        head.bias = value.bias

    def tie_weights(self) -> None:
        """Makes the input embeddings the last product's weight, where the configuration ties them."""
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
            raise UserError(f"resize_token_embeddings: {size} tokens: at least one is wanted")
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
            # As in the reference, the bias has a mean of its own where the weight is its own, and is 0 where it is not.
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

        def recompute(layer: nn.Module, *arguments: Any) -> Any:
            with save_on_cpu(pin_memory=self.device.type == "cuda") if offload else contextlib.nullcontext():
                return checkpoint(layer, *arguments, **how)

        self.recompute(recompute, every_n_layers)

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
        product's weight, too, is not excluded.
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


def dtype_of(dtype: torch.dtype | str | None, torch_dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A dtype by either of the argument's names; None for the files' own. Raises UserError."""
    if dtype is not None and torch_dtype is not None and dtype != torch_dtype:
        raise UserError(f"dtype {dtype} and torch_dtype {torch_dtype}: two names of one argument: give one")
    given = torch_dtype if dtype is None else dtype
    if given is None or given == "auto":
        return None
    found = getattr(torch, given.removeprefix("torch."), None) if isinstance(given, str) else given
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise UserError(f"dtype {given!r} is no floating point type of torch; float32, float16 and bfloat16 are usual")
    return found


def quantization_of(given: Any) -> BitsAndBytesConfig | None:
    """The configuration from an object of ours, of transformers', or a dictionary. Raises UserError."""
    if given is None or isinstance(given, BitsAndBytesConfig):
        found = given
    else:
        values = given.to_dict() if callable(getattr(given, "to_dict", None)) else given
        if not isinstance(values, Mapping):
            raise UserError(f"quantization_config: a BitsAndBytesConfig or a dictionary is wanted, got {given!r}")
        found = BitsAndBytesConfig.from_dict(values)
    if found is not None:
        found.bits  # noqa: B018 (raises where it asks for nothing)
    return found


def check_names(names: set[str]) -> None:
    """Raises UserError for a name that is no argument and no parameter of the configuration."""
    for name in sorted(names - {*PARAMETERS, *ALIASES}):
        if name in {f.name for f in fields(BitsAndBytesConfig)}:
            raise UserError(f"from_pretrained: {name} goes into quantization_config=BitsAndBytesConfig({name}=…)")
        near = difflib.get_close_matches(name, [*PARAMETERS, *ARGUMENTS], 1)
        hint = f", did you mean {near[0]!r}?" if near else ""
        raise UserError(f"from_pretrained: {name!r} is no argument and no parameter of XLMRobertaConfig{hint}")


def placement(
    model: nn.Module,
    device: torch.device | str | None,
    device_map: str | int | torch.device | DeviceMap | None,
    dtype: torch.dtype | None,
    quantization: BitsAndBytesConfig | None,
    quantized_on_disk: bool,
) -> Devices:
    """The device, or the map of devices, that the arguments mean. Raises UserError."""
    if device is not None and device_map is not None:
        raise UserError("from_pretrained: give device or device_map, not both")
    if device is None and device_map is None:
        on_gpu = (quantization is not None or quantized_on_disk) and torch.cuda.is_available()
        return torch.device("cuda" if on_gpu else CPU)
    if isinstance(device_map, Mapping):
        return {name: checked_device(where) for name, where in device_map.items()}
    if device_map != "auto":
        chosen = device if device_map is None else device_map
        assert chosen is not None
        return checked_device(chosen)
    if torch.cuda.device_count() == 0:
        return torch.device(CPU)
    each = 4 if dtype is None else dtype.itemsize
    return automatic(model, each, each if quantization is None else quantization.bits / 8)
