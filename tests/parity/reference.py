"""Models of transformers with random weights, ours with the same, inputs for both, and how near answers must be."""

import torch
import transformers

import xlmr_ray.modeling.xlm_roberta

TOLERANCE = 1e-5
# Sizes that no kernel likes, one and many token types, a padding id that is not 1.
SHAPES = [
    {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 37, "vocab_size": 99, "type_vocab_size": 16},
    {"hidden_size": 36, "num_attention_heads": 3, "intermediate_size": 64, "vocab_size": 101, "type_vocab_size": 1},
    {"hidden_size": 40, "num_attention_heads": 5, "intermediate_size": 13, "vocab_size": 64, "pad_token_id": 3},
    {"hidden_size": 8, "num_attention_heads": 1, "intermediate_size": 200, "vocab_size": 77, "hidden_act": "gelu_new"},
    {"hidden_size": 24, "num_attention_heads": 2, "intermediate_size": 48, "vocab_size": 50, "hidden_act": "relu"},
]
DECODER = {"is_decoder": True, "add_cross_attention": True}
CHOICES = 3


def reference(name: str, seed: int = 0, **values: object) -> torch.nn.Module:
    torch.manual_seed(seed)
    labels = 2 if name == "XLMRobertaForQuestionAnswering" else 3
    config = transformers.XLMRobertaConfig(
        **{
            "num_hidden_layers": 2,
            "max_position_embeddings": 48,
            "num_labels": labels,
            "initializer_range": 0.3,
            **values,
        }
    )
    model = getattr(transformers, name)(config).eval()
    for parameter in model.parameters():  # biases and norms too: fresh ones are zeros and ones, and hide mistakes
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def ours_of(theirs: torch.nn.Module, implementation: str = "sdpa") -> torch.nn.Module:
    """Our class of that name with those weights, in evaluation mode."""
    config = xlmr_ray.XLMRobertaConfig.from_dict(theirs.config.to_dict(), attn_implementation=implementation)
    ours = getattr(xlmr_ray.modeling.xlm_roberta, type(theirs).__name__)(config).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours


def inputs(config: object, lengths: list[int], seed: int = 1, *, left: bool = False) -> dict[str, torch.Tensor]:
    """Padded ids, mask and types `(B, S)` of texts of these lengths."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    ids = torch.full((len(lengths), longest), config.pad_token_id)
    mask = torch.zeros_like(ids)
    types = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        real = slice(longest - length, longest) if left else slice(length)
        ids[row, real] = torch.randint(5, config.vocab_size, (length,), generator=generator)
        types[row, real] = torch.randint(0, config.type_vocab_size, (length,), generator=generator)
        mask[row, real] = 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


def inputs_for(name: str, config: object, lengths: list[int], seed: int = 1) -> dict[str, torch.Tensor]:
    """Inputs of a class: choices of these lengths for multiple choice, texts elsewhere."""
    if name != "XLMRobertaForMultipleChoice":
        return inputs(config, lengths, seed)
    folded = inputs(config, [length for length in lengths for _ in range(CHOICES)], seed)
    return {key: x.view(len(lengths), CHOICES, -1) for key, x in folded.items()}


def close(got: torch.Tensor, wanted: torch.Tensor, name: str = "") -> None:
    got, wanted = got.detach(), wanted.detach()
    assert got.shape == wanted.shape, name
    scale = max(1.0, float(wanted.abs().max()))
    assert float((got - wanted).abs().max()) <= TOLERANCE * scale, name


def same(got: object, wanted: object, real: torch.Tensor) -> None:
    """Two outputs: the same fields in the same order, equal at the `real (B, S)` tokens."""
    assert list(got.keys()) == list(wanted.keys())
    for (field, a), b in zip(got.items(), wanted.values(), strict=True):
        if field == "past_key_values":
            assert a.get_seq_length() == b.get_seq_length()
            continue
        pairs = zip(a, b, strict=True) if isinstance(b, tuple) else [(a, b)]
        for x, y in pairs:
            if field in ("attentions", "cross_attentions"):
                x, y = x.transpose(1, 2), y.transpose(1, 2)
            tokens = x.shape[:2] == real.shape
            close(x[real] if tokens else x, y[real] if tokens else y, field)
