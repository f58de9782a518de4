"""Comparing experiments, and holding one against its expectations: what `sslkit compare` and
`sslkit verify` do."""
