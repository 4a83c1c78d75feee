"""Read pickled files safely: tensors and plain values; all other objects become inert records."""
