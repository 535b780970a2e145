"""Why a sequence has no result: the codes of error rows."""

NO_TOKENS = "no_tokens"
OUT_OF_MEMORY = "out_of_memory"
NON_FINITE = "non_finite"
TOKEN_OUT_OF_RANGE = "token_out_of_range"


def not_finite(dtype: object) -> str:
    """What to say of a result that is not a number, of a model of that dtype of torch."""
    hint = "; float16 ends at 65,504, dtype bfloat16 or float32 do not" if str(dtype) == "torch.float16" else ""
    return f"the model's result holds NaN or infinity{hint}"
