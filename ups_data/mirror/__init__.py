"""Weights & Biases: published datasets and models as artifacts. The client is imported only where it is used."""
