"""Why a sequence has no result: the codes of error rows."""

NO_TOKENS = "no_tokens"
OUT_OF_MEMORY = "out_of_memory"
NON_FINITE = "non_finite"
