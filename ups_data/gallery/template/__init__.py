"""The page itself: its HTML with gaps (Jinja), its style, its script."""
