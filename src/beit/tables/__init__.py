"""One row per image: codes (tokenize), features (embed) and classes (predict)."""
