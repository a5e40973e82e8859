"""How the networks are trained: one loop, resumable, the same curve every time."""
