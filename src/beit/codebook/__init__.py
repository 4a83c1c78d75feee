"""What the codes of a tokenizer stand for: statistics, a gallery and an explorer page."""
