"""``sidecar.yaml``: one sidecar's wiring. Pure.

``sidecar_yaml`` (its keys), ``collisions`` (listeners that would meet or loop), ``environment`` (``SIDECAR_…`` variables),
``wiring`` (the file and the mesh together, as a value), ``reference`` (JSON Schema and reference of the keys of both files).
"""
