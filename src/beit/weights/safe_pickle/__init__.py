"""Pickled files read safely: tensors and plain values, and other objects as inert records."""
