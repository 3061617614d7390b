"""A sidecar that carries a plaintext service's connections over mutual TLS 1.3.

One connection, top to bottom (``inbound.py`` and ``outbound.py`` are each one function that reads like this)::

    accept -> TLS handshake (deadline) -> identity -> policy -> dial -> relay -> one access-log line

The rooms, and the one direction in which they may depend on each other:

* **pure** (no trio, no sockets, no OpenSSL; time is an argument):
  files to values: ``document``, ``problems``, ``shape``, ``yamlfile``, ``durations``, ``address``; ``names``, ``meshfile``,
  ``mesh``; ``collisions``, ``configfile``, ``environment``, ``config``, ``schemas``;
  verdicts: ``reasons``, ``identity``, ``judge``, ``diagnosis``, ``policy``, ``verdict``, ``record``, ``duplex``,
  ``schedule``, ``devplan``, ``tally``, ``status``;
  Compose files to a mesh, in ``inject``: ``inject.application``, ``inject.visibility``, ``inject.references``,
  ``inject.wellknown``, ``inject.edges``, ``inject.ports``, ``inject.exclusions``, ``inject.topology``, ``inject.subnets``,
  ``inject.options``, ``inject.placement``, ``inject.yamltext``, ``inject.override``, ``inject.meshtext``, ``inject.wiring``,
  ``inject.picture``, ``inject.activation``, ``inject.injection``
* **I/O**: ``tls`` (the only importer of OpenSSL), ``credentials``, ``sockets``, ``dial``, ``gate``, ``handshake``,
  ``stream``, ``http1``, ``poller``, ``relay``, ``logs``, ``watch``, ``process``, ``statedir``, ``answers`` (what of a CA's
  answers is taken), ``memory`` (and what of what was kept), ``probe`` (asks ``admin``);
  ``inject.composecli``, ``inject.mounted``, ``inject.routes``, ``inject.image``, ``inject.state``, ``inject.project``
* **wiring**: ``registry``, ``node``, ``session``, ``inbound``, ``outbound``, ``server``, ``reload``, ``member`` (enrols,
  renews, follows the CA), ``run``, ``dev``, ``admin`` (tells what is so),
  ``inject.steps``
* **command line**: ``cli``; no logic. ``demo`` shows it all, by real processes

``tests/unit/test_layout.py`` enforces this. Everything fails closed: what was not expressly allowed is refused, with one
of the words of ``reasons`` and a sentence that says what was met, what was expected and what to do.
"""

__version__ = "0.1.0"
