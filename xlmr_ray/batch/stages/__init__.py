"""The steps of the pipeline, each a callable on one shard: tokenize, encode, write."""
