"""The formats on disk, one file each, writing and reading side by side."""
