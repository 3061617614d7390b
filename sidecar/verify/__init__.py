"""``sidecar verify``: does it hold? Every promise of a running mesh is tried, and what was seen is told.

``judgement`` (what each try must show, and what it does), ``stranger`` (who plays the stranger at a listener), ``remote``
(who does so from elsewhere), ``doors`` (how a sidecar is asked), ``trial`` (the whole of it: ask, try, judge), ``places``
(where the mesh is: `sidecar dev`, files, addresses), ``project`` (where it is: a Compose project), ``report`` (a table,
JSON, JUnit), ``page`` (one page of HTML).
"""
