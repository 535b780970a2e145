"""XLMRobertaTokenizer over the library `tokenizers`: calls, files, vocabularies, ragged batches."""
