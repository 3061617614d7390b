"""The process that sidecars talk to.

``serve`` (start, stop, and what is followed), ``listener`` (connections and their handshakes), ``api`` (what each path
answers), ``guesses`` and ``limits`` (how often), ``metrics`` (for Prometheus).
"""
