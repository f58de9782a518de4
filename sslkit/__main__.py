"""`python -m sslkit`."""

from sslkit.cli import main

main()
