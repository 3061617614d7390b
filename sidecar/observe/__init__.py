"""What a sidecar reports about itself.

``logs`` (JSON lines, or text on a terminal), ``log_queue`` (their way out, which never waits), ``stray`` (what libraries
write to stderr), ``record`` (one connection's log line), ``folding`` (which lines of strangers become summaries),
``summaries`` (writes these), ``traffic`` (who calls whom, and how much), ``metrics`` (counters), ``catalogue`` (every
metric, and what it means), ``exposition`` (as Prometheus reads them), ``lag`` (how late the loop is), ``admin`` (what the
admin port answers), ``local`` (HTTP for this machine alone), ``probe`` (a client of the admin port that imports nothing
else), ``announced`` (which connections are `sidecar verify`'s), ``plaintext`` (who still speaks it).

What may be an attack: ``alarms`` (folded, bounded), ``alarm_log`` (the way of every alarm), ``evidence`` (what an impostor
presented, as files), ``recurrence`` (what is an alarm if it is met again and again).
"""
