"""Finished runs side by side: what is read of them, statistics over seeds, the report."""
