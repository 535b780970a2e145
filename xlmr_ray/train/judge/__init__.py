"""Labels by a large model: documents drawn from many, asked about over HTTP, kept as Parquet."""
