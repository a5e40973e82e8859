"""The gallery: every dataset's card, fields, splits, latents and rollouts on one static page."""
