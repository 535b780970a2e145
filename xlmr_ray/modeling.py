"""The reference's classes: padded tensors in, its outputs out. A thin face over `model/` and `checkpoint/`."""

import copy
import warnings
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from xlmr_ray.checkpoint.files import resolve
from xlmr_ray.checkpoint.folder import read_config
from xlmr_ray.checkpoint.load import LoadReport, load_tensors
from xlmr_ray.checkpoint.save import save_pretrained
from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.errors import UserError
from xlmr_ray.model.attention import attention
from xlmr_ray.model.embeddings import Embeddings, positions_from_embeds, positions_from_ids
from xlmr_ray.model.encoder import Encoder, SelfAttention, Trace
from xlmr_ray.model.heads import ClassificationHead, LMHead, Pooler
from xlmr_ray.model.layout import Padded
from xlmr_ray.model.losses import classification_loss, token_loss
from xlmr_ray.model.outputs import (
    BaseModelOutputWithPoolingAndCrossAttentions,
    MaskedLMOutput,
    SequenceClassifierOutput,
)

Output = BaseModelOutputWithPoolingAndCrossAttentions | MaskedLMOutput | SequenceClassifierOutput


class PreTrainedModel(nn.Module):
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

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """`input_ids (B, S)` or `inputs_embeds (B, S, hidden)`; mask, types and positions `(B, S)`; `labels` as the
        class says.

        Every class's output has, when asked, `hidden_states` (layers + 1 times `(B, S, hidden)`) and `attentions`
        (layers times `(B, heads, S, S)`, computed eagerly whatever the back end); its other fields are in the class's
        `output`.
        """
        config = self.config
        base = self if isinstance(self, XLMRobertaModel) else self.roberta
        assert isinstance(base, XLMRobertaModel)
        states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        probs = config.output_attentions if output_attentions is None else output_attentions
        trace = Trace(hidden_states=[] if states else None, attentions=[] if probs else None)
        hidden = base.encode(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, trace)
        output = self.output(hidden, labels)
        if trace.hidden_states is not None:
            output.hidden_states = tuple(trace.hidden_states)
        if trace.attentions is not None:
            output.attentions = tuple(trace.attentions)
        as_object = config.return_dict if return_dict is None else return_dict
        return output if as_object else output.to_tuple()

    def output(self, hidden: Tensor, labels: Tensor | None) -> Output:
        """The class's own output from the last hidden states `(B, S, hidden)`."""
        raise TypeError(f"{type(self).__name__} is no model: use one of the XLMRoberta classes")

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


def visible(attention_mask: Tensor | None) -> Tensor | None:
    """A mask `(B, S)` of ones and zeros, or a boolean `(B, 1 or heads, S, S)`, as attention takes it; None where
    nothing is hidden.
    """
    if attention_mask is None or bool(attention_mask.all()):
        return None
    if attention_mask.dim() == 2:
        return attention_mask[:, None, None, :].bool()
    if attention_mask.dim() == 4 and attention_mask.dtype is torch.bool:
        return attention_mask
    raise UserError(
        "attention_mask: (batch, length), or a boolean (batch, heads, length, length) is wanted, "
        f"got {tuple(attention_mask.shape)} of {attention_mask.dtype}"
    )


class XLMRobertaModel(PreTrainedModel):
    """The bare encoder."""

    def __init__(self, config: XLMRobertaConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.pooler = Pooler(config) if add_pooling_layer else None
        self.apply(self.init_weights)

    def encode(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        trace: Trace,
    ) -> Tensor:
        """Padded inputs (see `forward`) to the last hidden states `(B, S, hidden)`; fills the trace."""
        pad = self.config.pad_token_id
        if input_ids is not None and inputs_embeds is None:
            positions = positions_from_ids(input_ids, pad) if position_ids is None else position_ids
        elif inputs_embeds is not None and input_ids is None:
            positions = positions_from_embeds(inputs_embeds, pad) if position_ids is None else position_ids
        else:
            raise UserError("forward: give exactly one of input_ids and inputs_embeds")
        length = positions.shape[-1]
        if position_ids is None and length > self.config.max_length:
            raise UserError(
                f"forward: {length} tokens in a text, the model has positions for {self.config.max_length}: "
                "cut or window the text"
            )
        x = self.embeddings(input_ids, positions, token_type_ids, inputs_embeds)
        out: Tensor = self.encoder(x, Padded(visible(attention_mask)), trace)
        return out

    def output(self, hidden: Tensor, labels: Tensor | None) -> Output:
        """`last_hidden_state (B, S, hidden)` and `pooler_output (B, hidden)`; there is no loss, so no labels."""
        if labels is not None:
            raise UserError("XLMRobertaModel has no loss; labels go to one of the XLMRobertaFor… classes")
        pooled = None if self.pooler is None else self.pooler(hidden[:, 0])
        return BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=hidden, pooler_output=pooled)


class XLMRobertaForMaskedLM(PreTrainedModel):
    """The encoder with the language modelling head."""

    def __init__(self, config: XLMRobertaConfig) -> None:
        super().__init__(config)
        self.roberta = XLMRobertaModel(config, add_pooling_layer=False)
        self.lm_head = LMHead(config)
        self.lm_head.apply(self.init_weights)
        if config.tie_word_embeddings:
            self.lm_head.decoder.weight = self.roberta.embeddings.word_embeddings.weight

    def output(self, hidden: Tensor, labels: Tensor | None) -> Output:
        """`logits (B, S, vocab)` and, for `labels (B, S)` (-100 is ignored), the mean loss."""
        logits = self.lm_head(hidden)
        loss = None if labels is None else token_loss(logits, labels.to(logits.device))
        return MaskedLMOutput(loss=loss, logits=logits)


class XLMRobertaForSequenceClassification(PreTrainedModel):
    """The encoder with a classification or regression head on the first token."""

    def __init__(self, config: XLMRobertaConfig) -> None:
        super().__init__(config)
        self.roberta = XLMRobertaModel(config, add_pooling_layer=False)
        self.classifier = ClassificationHead(config)
        self.classifier.apply(self.init_weights)

    def output(self, hidden: Tensor, labels: Tensor | None) -> Output:
        """`logits (B, labels)` and, for `labels`, the loss that `config.problem_type` names (or the labels imply)."""
        logits = self.classifier(hidden[:, 0])
        loss = None if labels is None else classification_loss(logits, labels.to(logits.device), self.config)
        return SequenceClassifierOutput(loss=loss, logits=logits)
