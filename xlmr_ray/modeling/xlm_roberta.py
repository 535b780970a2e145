"""The reference's classes: padded tensors in, its outputs out. A thin face over `model/` and `checkpoint/`."""

import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.errors import UserError
from xlmr_ray.model.argument_checks import check_range, check_shape, values_unknown
from xlmr_ray.model.attention.masks import visible
from xlmr_ray.model.embeddings import EmbeddingLayer, positions_from_embeds, positions_from_ids
from xlmr_ray.model.encoder import CrossSource, Encoder, Trace
from xlmr_ray.model.generation.cache import DynamicCache, as_ours
from xlmr_ray.model.generation.config import GenerationConfig
from xlmr_ray.model.generation.generate import generate
from xlmr_ray.model.generation.interface import prepare_inputs, transition_scores
from xlmr_ray.model.heads import ClassificationHead, LMHead, Pooler, classifier_dropout
from xlmr_ray.model.layout import Padded
from xlmr_ray.model.losses import classification_loss, lm_loss, question_answering_loss, token_loss
from xlmr_ray.model.outputs import (
    BaseModelOutputWithPoolingAndCrossAttentions,
    CausalLMOutputWithCrossAttentions,
    MaskedLMOutput,
    ModelOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from xlmr_ray.modeling.arguments import CACHE, INPUTS, SOURCE, Arguments, called_with
from xlmr_ray.modeling.pretrained import Pretrained


class PreTrainedModel(Pretrained):
    """The one call that all the classes share; each says in `output` what it makes of the hidden states.

    Every output has, when asked, `hidden_states` (layers + 1 times `(B, S, hidden)`) and `attentions` (layers times
    `(B, heads, S, past + S)`, computed eagerly whatever the back end). Where the class has the fields, there are also
    `cross_attentions` (layers times `(B, heads, S, S_enc)`, empty without a source) and a decoder's `past_key_values`.
    """

    def call(self, given: Arguments) -> ModelOutput | tuple[Any, ...]:
        """What `forward` does, with its arguments in one object."""
        config = self.config
        states = config.output_hidden_states if given.output_hidden_states is None else given.output_hidden_states
        probs = config.output_attentions if given.output_attentions is None else given.output_attentions
        if probs and config.attn_implementation != "eager":
            warnings.warn(
                f"output_attentions: {config.attn_implementation} attention never holds probabilities; "
                "they are computed eagerly where they are asked for",
                stacklevel=5,
            )
        if given.use_cache and not config.is_decoder:
            warnings.warn("use_cache: only a decoder (config.is_decoder) has a cache; there is none", stacklevel=5)
        use_cache = config.is_decoder and (config.use_cache if given.use_cache is None else given.use_cache)
        use_cache = use_cache and given.labels is None  # nothing goes on from a training step
        cache = DynamicCache() if use_cache and given.past_key_values is None else as_ours(given.past_key_values)
        trace = Trace([] if states else None, [] if probs else None, [] if probs else None)

        base = self.base_model
        assert isinstance(base, XLMRobertaModel)
        output = self.output(base.encode(self.folded(given), cache, trace), given)
        found = {
            "past_key_values": (given.past_key_values or cache) if use_cache else None,
            "hidden_states": trace.hidden_states,
            "attentions": trace.attentions,
            "cross_attentions": trace.cross_attentions,
        }
        for name, value in found.items():
            if value is not None and hasattr(output, name):
                setattr(output, name, tuple(value) if isinstance(value, list) else value)
        as_object = config.return_dict if given.return_dict is None else given.return_dict
        return output if as_object else output.to_tuple()

    def folded(self, given: Arguments) -> Arguments:
        """The arguments as the encoder takes them."""
        return given

    def pooled(self, first: Tensor) -> Tensor:
        """First tokens' hidden states `(N, hidden)` through the encoder's pooler."""
        out: Tensor = self.base_model.get_submodule("pooler")(first)
        return out

    def output(self, hidden: Tensor, given: Arguments) -> ModelOutput:
        """The class's own output from the last hidden states `(B, S, hidden)`."""
        raise TypeError(f"{type(self).__name__} is no model: use one of the XLMRoberta classes")


# As transformers has it: what a class of the user's with another head stands on.
XLMRobertaPreTrainedModel = PreTrainedModel


class XLMRobertaModel(PreTrainedModel):
    """The bare encoder, or decoder."""

    forward = called_with(*INPUTS, *SOURCE, *CACHE)

    def __init__(self, config: XLMRobertaConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.embeddings = EmbeddingLayer(config)
        self.encoder = Encoder(config)
        self.pooler = Pooler(config) if add_pooling_layer else None
        self.apply(self.init_weights)
        if config.extra.pop("gradient_checkpointing", False):  # how older transformers asked for it
            self.activation_checkpointing_enable()

    def encode(self, given: Arguments, cache: DynamicCache | None, trace: Trace) -> Tensor:
        """Padded inputs to the last hidden states `(B, S, hidden)`; fills the trace and the cache."""
        self.check(given)
        config = self.config
        past = 0 if cache is None else cache.get_seq_length()
        x = self.embeddings(given.input_ids, self.positions(given, past), given.token_type_ids, given.inputs_embeds)
        mask = visible("attention_mask", given.attention_mask, past + x.shape[1], x, config.num_attention_heads)
        # A mask of four dimensions says it all, as in transformers.
        causal = config.is_decoder and (given.attention_mask is None or given.attention_mask.dim() == 2)
        out: Tensor = self.encoder(x, Padded(mask, causal), trace, self.source(given, cache, x), cache)
        return out

    def check(self, given: Arguments) -> None:
        """Raises UserError for inputs that do not fit each other or the model."""
        config = self.config
        inputs = given.input_ids if given.inputs_embeds is None else given.inputs_embeds
        if inputs is None or (given.input_ids is not None and given.inputs_embeds is not None):
            raise UserError("forward: give exactly one of input_ids and inputs_embeds")
        if given.inputs_embeds is None:
            check_shape("input_ids", inputs, "batch", "length")
            check_range("input_ids", inputs, config.vocab_size)
        else:
            check_shape("inputs_embeds", inputs, "batch", "length", config.hidden_size)
        for name, ids, size in (
            ("position_ids", given.position_ids, config.max_position_embeddings),
            ("token_type_ids", given.token_type_ids, config.type_vocab_size),
        ):
            if ids is not None:
                check_shape(name, ids, 1 if len(ids) == 1 else inputs.shape[0], inputs.shape[1])
                check_range(name, ids, size)

    def positions(self, given: Arguments, past: int) -> Tensor:
        """Positions `(B, S)` of the tokens after the `past` ones: those given, or counted. Embeddings are counted from
        the start, whatever is past, as in transformers.
        """
        config = self.config
        if given.position_ids is not None:
            return given.position_ids
        if config.bert_layout:
            inputs = given.inputs_embeds if given.input_ids is None else given.input_ids
            assert inputs is not None
            positions = past + torch.arange(inputs.shape[1], device=inputs.device).expand(inputs.shape[:2])
        elif given.input_ids is not None:
            positions = positions_from_ids(given.input_ids, config.pad_token_id, past)
        else:
            assert given.inputs_embeds is not None
            positions = positions_from_embeds(given.inputs_embeds, config.pad_token_id)
        if past + positions.shape[1] > config.max_length and not values_unknown():
            length = int(positions.max()) + 1 - config.first_position
            if length > config.max_length:
                raise UserError(
                    f"forward: {length} tokens in a text, the model has positions for {config.max_length}: "
                    "cut or window the text"
                )
        return positions

    def source(self, given: Arguments, cache: DynamicCache | None, x: Tensor) -> CrossSource | None:
        """What cross-attention looks at: the hidden states given, or those that the cache has from an earlier call."""
        states = given.encoder_hidden_states
        held = 0 if cache is None else cache.get_cross_length()
        if states is None and not held:
            if given.encoder_attention_mask is not None:
                raise UserError("encoder_attention_mask: there are no encoder_hidden_states to hide any of")
            return None
        if not self.config.add_cross_attention:
            raise UserError(
                "encoder_hidden_states: this model has no cross-attention "
                "(config.is_decoder and config.add_cross_attention)"
            )
        if states is not None:
            check_shape("encoder_hidden_states", states, len(x), "length", x.shape[2])
        length = held or (0 if states is None else states.shape[1])
        mask = given.encoder_attention_mask
        return CrossSource(
            states, Padded(visible("encoder_attention_mask", mask, length, x, self.config.num_attention_heads))
        )

    def output(self, hidden: Tensor, given: Arguments) -> ModelOutput:
        """`last_hidden_state (B, S, hidden)` and `pooler_output (B, hidden)`."""
        pooled = None if self.pooler is None else self.pooler(hidden[:, 0])
        return BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=hidden, pooler_output=pooled)


class XLMRobertaForCausalLM(PreTrainedModel):
    """The decoder with the language modelling head."""

    forward = called_with(*INPUTS, *SOURCE, "labels", *CACHE, "logits_to_keep")
    generate = generate
    prepare_inputs_for_generation = prepare_inputs
    compute_transition_scores = transition_scores
    loss_type = "ForCausalLM"

    def __init__(self, config: XLMRobertaConfig) -> None:
        super().__init__(config)
        if not config.is_decoder:
            warnings.warn("XLMRobertaForCausalLM sees later tokens, too, unless is_decoder=True", stacklevel=2)
        self.generation_config = GenerationConfig.of_model(config)
        self.add_module(self.base_model_prefix, XLMRobertaModel(config, add_pooling_layer=False))
        self.lm_head = LMHead(config)
        self.lm_head.apply(self.init_weights)
        self.tie_weights()

    def output(self, hidden: Tensor, given: Arguments) -> ModelOutput:
        """`logits (B, S, vocab)`, of the tokens to keep, and for `labels (B, S)` (-100 is ignored) the mean loss of
        each as its predecessor foretells it; logits are then made when they are read.
        """
        hidden = kept_states(hidden, given.logits_to_keep)
        if given.labels is None:
            return CausalLMOutputWithCrossAttentions(logits=self.lm_head(hidden))
        labels = matching(given.labels, hidden)
        return CausalLMOutputWithCrossAttentions(
            loss=lm_loss(hidden[..., :-1, :], labels[..., 1:], self.lm_head, items=given.num_items_in_batch),
            logits=self.lm_head.later(hidden),  # type: ignore[arg-type] # a function: see `OutputField`
        )


def kept_states(hidden: Tensor, which: int | Tensor) -> Tensor:
    """The hidden states that `logits_to_keep` names (see `Arguments`), out of `(B, S, hidden)`."""
    if isinstance(which, int):
        return hidden[:, -which:] if which else hidden
    if which.dim() == 2 and which.dtype is torch.bool:
        return hidden[which]
    if which.dim() == 2:
        return hidden.take_along_dim(which[..., None], dim=1)
    return hidden[:, which]


def matching(labels: Tensor, hidden: Tensor) -> Tensor:
    """Labels `(*tokens)` where the hidden states `(*tokens, hidden)` are. Raises UserError for another shape."""
    check_shape("labels", labels, *hidden.shape[:-1])
    return labels.to(hidden.device)


class XLMRobertaForMaskedLM(PreTrainedModel):
    """The encoder with the language modelling head."""

    forward = called_with(*INPUTS, *SOURCE, "labels")

    def __init__(self, config: XLMRobertaConfig) -> None:
        super().__init__(config)
        if config.is_decoder:
            warnings.warn("XLMRobertaForMaskedLM does not see later tokens unless is_decoder=False", stacklevel=2)
        self.add_module(self.base_model_prefix, XLMRobertaModel(config, add_pooling_layer=False))
        self.lm_head = LMHead(config)
        self.lm_head.apply(self.init_weights)
        self.tie_weights()

    def output(self, hidden: Tensor, given: Arguments) -> ModelOutput:
        """`logits (B, S, vocab)` and, for `labels (B, S)` (-100 is ignored), the mean loss; logits are then made when
        they are read.
        """
        if given.labels is None:
            return MaskedLMOutput(logits=self.lm_head(hidden))
        labels = matching(given.labels, hidden)
        return MaskedLMOutput(
            loss=lm_loss(hidden, labels, self.lm_head),
            logits=self.lm_head.later(hidden),  # type: ignore[arg-type] # a function: see `OutputField`
        )

    def generate(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **arguments: Any) -> Any:
        """Texts as `XLMRobertaForCausalLM.generate` makes them, token by token after the prompt. As tokens read each
        other both ways here, each is computed anew from all, unless `use_cache=True`.

        transformers' document calls it, its class has none: the ids are those of a class with transformers'
        `generate` and `use_cache=False`.
        """
        return generate(self, input_ids, attention_mask, **{"use_cache": False, **arguments})


class XLMRobertaForSequenceClassification(PreTrainedModel):
    """The encoder with a classification or regression head on the first token."""

    forward = called_with(*INPUTS, "labels")

    def __init__(self, config: XLMRobertaConfig) -> None:
        super().__init__(config)
        self.add_module(self.base_model_prefix, XLMRobertaModel(config, add_pooling_layer=config.bert_layout))
        if config.bert_layout:
            self.dropout = classifier_dropout(config)
            self.classifier: nn.Module = nn.Linear(config.hidden_size, config.num_labels)
        else:
            self.classifier = ClassificationHead(config)
        self.classifier.apply(self.init_weights)

    def output(self, hidden: Tensor, given: Arguments) -> ModelOutput:
        """`logits (B, labels)` and, for `labels`, the loss that `config.problem_type` names (or the labels imply)."""
        first = hidden[:, 0]
        if self.config.bert_layout:
            first = self.dropout(self.pooled(first))
        logits = self.classifier(first)
        labels = given.labels
        loss = None if labels is None else classification_loss(logits, labels.to(logits.device), self.config)
        return SequenceClassifierOutput(loss=loss, logits=logits)


class XLMRobertaForMultipleChoice(PreTrainedModel):
    """The encoder with its pooler and a score: which of a text's C choices is the right one.

    All inputs have the choices after the batch: `input_ids (B, C, S)`, `inputs_embeds (B, C, S, hidden)`.
    """

    # The reference's order, which is not that of the other classes.
    forward = called_with("input_ids", "token_type_ids", "attention_mask", "labels", "position_ids", "inputs_embeds")

    def __init__(self, config: XLMRobertaConfig) -> None:
        super().__init__(config)
        self.add_module(self.base_model_prefix, XLMRobertaModel(config, add_pooling_layer=True))
        self.dropout = classifier_dropout(config) if config.bert_layout else nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, 1)
        self.classifier.apply(self.init_weights)

    def folded(self, given: Arguments) -> Arguments:
        """The choices as rows of the batch."""
        inputs: dict[str, Any] = {}
        for name in INPUTS:
            x = getattr(given, name)
            if x is None:
                continue
            check_shape(name, x, "batch", "choices", "length", *(["hidden"] if name == "inputs_embeds" else []))
            inputs[name] = x.flatten(0, 1)
        return replace(given, **inputs)

    def output(self, hidden: Tensor, given: Arguments) -> ModelOutput:
        """`logits (B, C)` and, for `labels (B)`, the mean cross-entropy of the right choices."""
        inputs = given.input_ids if given.inputs_embeds is None else given.inputs_embeds
        assert inputs is not None
        logits = self.classifier(self.dropout(self.pooled(hidden[:, 0]))).view(inputs.shape[:2])
        loss = None if given.labels is None else token_loss(logits, matching(given.labels, logits))
        return MultipleChoiceModelOutput(loss=loss, logits=logits)


class XLMRobertaForTokenClassification(PreTrainedModel):
    """The encoder with a classifier of every token."""

    forward = called_with(*INPUTS, "labels")

    def __init__(self, config: XLMRobertaConfig) -> None:
        super().__init__(config)
        self.add_module(self.base_model_prefix, XLMRobertaModel(config, add_pooling_layer=False))
        self.dropout = classifier_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.classifier.apply(self.init_weights)

    def output(self, hidden: Tensor, given: Arguments) -> ModelOutput:
        """`logits (B, S, labels)` and, for `labels (B, S)` (-100 is ignored), the mean loss."""
        logits = self.classifier(self.dropout(hidden))
        loss = None if given.labels is None else token_loss(logits, matching(given.labels, logits))
        return TokenClassifierOutput(loss=loss, logits=logits)


class XLMRobertaForQuestionAnswering(PreTrainedModel):
    """The encoder with two scores a token: that the answer starts here, and that it ends here."""

    forward = called_with(*INPUTS, "start_positions", "end_positions")

    def __init__(self, config: XLMRobertaConfig) -> None:
        super().__init__(config)
        if config.num_labels != 2:
            raise UserError(f"config: question answering has num_labels=2 (start and end), got {config.num_labels}")
        self.add_module(self.base_model_prefix, XLMRobertaModel(config, add_pooling_layer=False))
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.qa_outputs.apply(self.init_weights)

    def output(self, hidden: Tensor, given: Arguments) -> ModelOutput:
        """`start_logits` and `end_logits (B, S)`, and for `start_positions` and `end_positions (B)` the mean loss."""
        start_logits, end_logits = self.qa_outputs(hidden).unbind(-1)
        starts, ends = given.start_positions, given.end_positions
        if (starts is None) != (ends is None):
            raise UserError("a loss wants both start_positions and end_positions, got one of them")
        loss = None
        if starts is not None and ends is not None:
            loss = question_answering_loss(start_logits, end_logits, starts, ends)
        return QuestionAnsweringModelOutput(loss=loss, start_logits=start_logits, end_logits=end_logits)
