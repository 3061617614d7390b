"""The machine under a process.

``process`` (its limits and the privacy of its memory), ``clock``, ``atomic`` (files written whole or not at all),
``private`` (files that are their owner's alone), ``follow`` (files that change while the process runs), ``commands``
(command lines: usage errors become sentences and exit code 2).
"""
