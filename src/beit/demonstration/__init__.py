"""Run the whole pipeline on two cores, and say what was learned."""
