"""The online service: the tokenizer, engine and tasks of a batch job behind HTTP."""
