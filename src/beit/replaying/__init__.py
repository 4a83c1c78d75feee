"""Compute a skipped step of a training again, and say where its numbers were not finite first."""
