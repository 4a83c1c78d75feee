"""Train a visual tokenizer: VQ-KD (BEiT v2) or the discrete VAE (BEiT v1)."""
