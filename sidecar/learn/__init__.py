"""From what was seen to rules, and from a changed mesh file to what it would refuse.

``seen`` (who called whom, by logs and reports), ``rules`` (the least set of rules for it), ``merge`` (these rules in the
text of a mesh file), ``replay`` (which past connections change their verdict), ``gather`` (reads logs and the application).
"""
