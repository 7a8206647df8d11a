"""`python -m pgnas_cli`."""

from .cli import main

main()
