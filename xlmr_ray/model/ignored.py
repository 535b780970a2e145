"""The target of a token that has none."""

IGNORED = -100  # as `ignore_index` of torch and transformers
