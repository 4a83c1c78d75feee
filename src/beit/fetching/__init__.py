"""Fetch public data sets and write them as Parquet."""
