"""The run folder: its files, each with one reader and one writer. Nobody else knows their names."""
