"""Rollouts on the test split, their errors, and pictures of them."""
