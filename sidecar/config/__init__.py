"""``sidecar.yaml``: the configuration of one sidecar. Pure.

``sidecar_yaml`` (its keys), ``permissive`` (ports that take plaintext until a day), ``collisions`` (listeners that conflict
or loop), ``environment`` (``SIDECAR_…`` variables), ``wiring`` (the file and its mesh together, as a value), ``reference``
(JSON Schema and reference of the keys of both files).
"""
