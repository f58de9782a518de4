"""Comparing experiments, and holding one against its expectations: what `sslkit compare` and
`sslkit verify` do.

Not here: the page and its figures (`report/comparison`), and statistics (`evaluation`)."""
