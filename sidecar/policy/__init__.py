"""``mesh.yaml``: the services of a mesh, and which service may call which. Pure.

``mesh_yaml`` (the keys of the file), ``names`` (what services, ports and SPIFFE patterns in it refer to), ``mesh`` (the
file as a value), ``index`` (the few of its rules that can cover a call), ``alarm_url`` (where alarms go), ``decide``
(whether a peer may call a port), ``explain`` (why, and the file's own tests), ``junit`` (their results for CI), ``ending``
(what a rule that runs out will refuse), ``opening`` (whether a change of the file could allow more).
"""
