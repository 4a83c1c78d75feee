"""Tables of images and labels: Parquet, Arrow, CSV, JSON lines."""
