"""Weights in other people's layouts, one file a family."""
