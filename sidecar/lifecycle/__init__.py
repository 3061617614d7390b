"""One sidecar from start to drain, and what is reloaded in between."""
