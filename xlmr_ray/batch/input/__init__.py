"""What a job reads: files, columns, shards, and a reader for each format."""
