"""Text that people write becomes checked values. Pure, but for the reading of files.

``yaml12`` (YAML 1.2 with positions and bounds), ``document`` (plain data and where it stands), ``problems`` (all faults of a
file at once, as ``file:line: …``), ``schema`` (the shapes of mappings), ``checks`` (of the values in them), ``address``
(IPs, ports, devices), ``durations``, ``days``, ``paths`` (names of files in a file), ``printable`` (text of others, for a
terminal), ``regular`` (files, read without waiting for another program).
"""
