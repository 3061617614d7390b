"""``sidecar dashboard``: the mesh in a browser: one page, on loopback, made of what the CA keeps.

What is shown: ``reading`` (what the CA shows, as typed values), ``rates`` (of successive reports), ``pairs`` (who calls
whom), ``services``, ``refused`` (refusals and alarms, with their words), ``questions`` (the four answers and the verdict),
``layout`` (where everything is drawn), ``view`` (all of it, as one document), ``changes`` (between two of them).

How: ``guard`` (who may ask), ``board`` (the newest view, for all who wait for it), ``server`` (HTTP and server-sent events),
``sources`` (a CA beside us, or the one of a Compose project), ``serving`` (all of it, to its end). ``page`` holds the page
itself: HTML, CSS and JavaScript without a framework, served as they are.
"""
