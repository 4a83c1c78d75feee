"""Models and mathematics: tensors in, tensors out. Torch only; no files, network or logging."""
