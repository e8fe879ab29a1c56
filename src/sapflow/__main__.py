"""`python -m sapflow` is `sapflow`."""

from sapflow.cli import main

main()
