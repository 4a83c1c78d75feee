"""Weights in other people's layouts, one file per family."""
