"""The classes with transformers' names: a thin face over `model/` and `checkpoint/`."""
