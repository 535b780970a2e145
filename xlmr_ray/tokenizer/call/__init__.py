"""What a call of the tokenizer takes and returns."""
