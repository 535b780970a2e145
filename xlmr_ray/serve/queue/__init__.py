"""Requests that wait for an engine: one queue for batches, one for generated text."""
