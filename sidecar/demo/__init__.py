"""``make demo``: a whole mesh of real processes on this machine, used and attacked, with every verdict checked.

``apps`` are the applications (they know nothing of TLS), ``stage`` runs them beside real sidecars with real files,
``attackers`` are those on the wire, ``story`` is what happens, act by act. Nothing printed is taken on trust: each act
states what the sidecars' own logs must say, and the first that does not hold ends the demo with exit code 1.
"""
