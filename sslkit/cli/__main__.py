"""`python -m sslkit.cli`."""

from . import main

main()
