"""Pretrain a ViT by masked image modelling (BEiT v2, section 2.3)."""
