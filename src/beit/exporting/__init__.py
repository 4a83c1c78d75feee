"""Export models to other libraries, and push them to the Hugging Face hub."""
