"""``make demo``: a mesh of real processes on this machine, used and attacked, with every verdict checked.

``apps`` are the applications (none of them uses TLS), ``stage`` runs them beside real sidecars with real files,
``attackers`` are the attacks on the wire, ``story`` is the sequence of acts. Each act states what the sidecars' logs must
contain. The first statement that does not hold ends the demo with exit code 1.
"""
