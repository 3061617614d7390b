"""``sidecar.yaml``: one sidecar's wiring, and the environment variables that override it. Pure."""
