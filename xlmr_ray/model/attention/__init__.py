"""Attention: back ends by name, their kernels, and masks."""
