"""Object stores: a local folder, S3, or another fsspec URL."""
