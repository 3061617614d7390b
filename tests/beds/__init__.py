"""What the tests stand on: programs to drive, and builders of what they are given. One module, one bed.

In the test's own process, on loopback or in memory, on time that the test moves:

* ``ca``: a CA that serves ``ca_files``, and the sidecars that are its members; ``asking`` adds requests that no client of
  ours would send, and ``impostor`` somebody else in the CA's place or a service's;
* ``mesh``: sidecars, apps and foreign TLS peers; ``live`` does it from files that are reloaded, ``dev_mesh`` for
  ``sidecar dev``;
* ``store``: a CA's store without a server;
* ``relay`` and ``duplex``: one relay and one connection, over ``simulation``'s fakes.

As processes: ``processes`` (any program, a newcomer's files, ``sidecar run``) and ``ca_processes`` (``certs serve`` and its
members).

Builders: ``certificates`` (certificates and CSRs, good and bad) and ``clock`` (times of day).
"""
