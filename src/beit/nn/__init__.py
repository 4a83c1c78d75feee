"""Floor 0: tensors in, tensors out. Torch only; no files, network, logging or collectives."""
