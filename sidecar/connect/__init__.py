"""``sidecar connect``: a person's pass becomes a local port.

``person`` (what is in the file, checked, as one sidecar without a file), ``words`` (what happens to connections, for a
person), ``owner`` (which user a local connection is of), ``program`` (the program that is started with the port),
``session`` (from the port's opening to the end of the pass or of the program).
"""
