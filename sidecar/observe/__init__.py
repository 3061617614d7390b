"""What a sidecar reports about itself.

``logs`` (JSON lines, or text on a terminal), ``record`` (one connection's log line), ``metrics`` (counters), ``admin`` (the
admin port), ``probe`` (a client of the admin port that imports nothing else).
"""
