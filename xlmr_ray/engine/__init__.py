"""Ragged ids in, head outputs out, order kept. Runs without Ray."""
