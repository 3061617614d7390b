"""``sidecar inject``: puts a sidecar beside every service of a Docker Compose application.

How this works. The core is ``inject`` of ``injection``, a pure function. Its input is Compose's own reading of the
application, and the texts that the services mount and are built from. Its output is the text of every file to write. It
reads top to bottom::

    application -> exclusions -> edges -> ports -> topology -> subnets -> override, meshtext, wiring, picture

``application`` (Compose's reading, as values), ``exclusions`` (services that cannot be meshed), ``edges`` (calls),
``ports``, ``topology`` (networks and names), ``subnets``, ``override`` (``compose.mesh.yaml``), ``meshtext``
(``mesh.yaml``), ``wiring`` (each ``sidecar.yaml``), ``scraping`` (for a Prometheus), ``picture`` (the report).

Around it, the I/O: ``composecli`` runs Compose, ``mounted`` reads texts, ``image`` packs this package, ``state`` makes keys
and secrets, ``project`` compares and writes; ``steps`` calls them in order, and ``upgrade`` renews what runs. Fails closed:
a service that cannot be put behind a sidecar is reported with the reason, and a call that was not found is denied.

Smaller modules serve these: ``facts`` (what the Compose file itself says for the mesh: ``x-mesh``), ``visibility`` (which
names an app can reach), ``references`` (hosts and ports named in a text), ``keys`` (which keys name hosts), ``clusters``
(services that call each other though no file says so), ``attribution`` (whose a source file is), ``listening`` (what a
service tells of its own port), ``questions`` (what a person is asked, and what nobody can reach), ``wellknown`` (images and
their ports), ``layout`` (where the last run put everything), ``kept`` (sidecars of another version), ``options`` (the
choices of a run, kept for the next), ``placement`` (secrets outside of what apps can read), ``routes`` (networks in use on
this machine), ``overview`` (``sidecar status --all``), ``activation`` (``COMPOSE_FILE``), ``merged`` (application and
override as one file), ``beside`` (ways to an app beside its sidecar), ``published`` (mutual TLS at an address of the host),
``outsiders`` (callers that are not in the mesh), ``yamltext``.
"""
