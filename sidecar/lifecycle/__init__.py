"""One sidecar process, from start to drain.

``run`` (``sidecar run``: puts the parts together), ``reload`` (changes while it runs), ``status`` (its state, for people),
``report`` (the same for its CA), ``gauges`` (the same for the metrics),
``ending_watch`` (which calls a rule that runs out will refuse), ``plaintext_watch`` (who speaks plaintext to a permissive
port, and who is cut).
"""
