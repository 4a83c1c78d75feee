"""Fine-tune a pretrained ViT as an image classifier."""
