"""Tables with a row per image: written in parts, resumable, with the same bytes every time."""
