"""Tables with one row per image: computed in parts, resumable, bit-identical every time."""
