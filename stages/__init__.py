"""One thin script a stage: `python -m stages.<stage> --help`."""
