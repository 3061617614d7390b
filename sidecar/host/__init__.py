"""What a process uses of its operating system.

``process`` (limits, the collector, protection of its memory), ``memory`` (free memory goes back), ``clock``, ``deadline`` (a
time limit), ``atomic`` (files written whole or not at all), ``private`` (files that only their owner can access), ``disk``
(work on files that may never end), ``apart`` (a large ``mesh.yaml`` is parsed beside the program), ``follow`` (files that
change while the process runs), ``redraw`` (a text shown again and again), ``unused`` (modules that nobody uses are not
loaded), ``commands`` (command lines: usage errors become messages and exit code 2).
"""
