"""Raw files in, split and described artifacts out."""
