"""`python -m flows.cli` is the console script `posttrain`."""

from flows.cli import main

main()
