"""Pictures of what a model does with an image: tokens, predictions and attention."""
