"""The sample raw data: real solvers that write the official file layout."""
