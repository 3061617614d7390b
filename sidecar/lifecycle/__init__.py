"""One sidecar from start to drain.

``run`` (``sidecar run``: the wiring), ``reload`` (what changes while it runs), ``status`` (what it says of itself).
"""
