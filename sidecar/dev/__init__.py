"""``sidecar dev``: a whole mesh in one process."""
