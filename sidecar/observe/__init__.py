"""What a sidecar reports.

``logs`` (JSON lines, or text on a terminal), ``record`` (one connection's line), ``metrics`` (counters), ``admin`` (the admin
port), ``probe`` (asks the admin port; loads nothing else).
"""
