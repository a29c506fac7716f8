"""`python -m fico_export` is `fico`, for an interpreter whose scripts are not on the path."""

from fico_export.cli.main import main

main()
