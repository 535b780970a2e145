"""OpenAI's files and batches: requests in a file, answered when there is nothing else to do."""
