"""The reference's classes: padded tensors in, its outputs out. A thin face over `model/` and `checkpoint/`."""

from typing import Any

import torch
from torch import Tensor

from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.errors import UserError
from xlmr_ray.model.embeddings import Embeddings, positions_from_embeds, positions_from_ids
from xlmr_ray.model.encoder import Encoder, Trace
from xlmr_ray.model.heads import ClassificationHead, LMHead, Pooler
from xlmr_ray.model.layout import Padded
from xlmr_ray.model.losses import classification_loss, token_loss
from xlmr_ray.model.outputs import (
    BaseModelOutputWithPoolingAndCrossAttentions,
    MaskedLMOutput,
    SequenceClassifierOutput,
)
from xlmr_ray.pretrained import Pretrained

Output = BaseModelOutputWithPoolingAndCrossAttentions | MaskedLMOutput | SequenceClassifierOutput


class PreTrainedModel(Pretrained):
    """The one forward that all the classes share; each says in `output` what it makes of the hidden states."""

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
