"""The built-in data sources, and how files become images: folders, Parquet, annotations, decoding.

Not here: splits, batches and caches (`data`)."""
