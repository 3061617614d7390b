"""``sidecar inject``: anybody's Compose application becomes a mesh.

The heart is ``injection.inject``, a pure function from what Compose itself says of an application, and the texts that its
services mount and are built from, to the text of every file. It reads top to bottom::

    application -> exclusions -> edges -> ports -> topology -> subnets -> override, meshtext, wiring, picture

Around it, the I/O: ``composecli`` asks Compose, ``mounted`` reads texts, ``image`` packs this package, ``state`` makes keys
and secrets, ``project`` compares and writes; ``steps`` puts them in order. Fails closed: what cannot be put behind a sidecar
is said, with its reason, and what nobody foresaw is a denied call, not an open one.
"""
