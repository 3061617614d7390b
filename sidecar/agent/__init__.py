"""The identity of this sidecar: its certificate, key, trust bundle and revocations.

``membership`` (what to do next: enrol, renew, poll, wait), ``trust`` (what is believed, and may not go back), ``agent``
(does it), ``accept`` (checks of the CA's certificates), ``saved_state`` (the kept state, checked), ``statedir`` (its files),
``credentials`` (certificate, key and bundle from files), ``schedule`` (when to renew), ``twins`` (whether another holder of
our identity lives), ``twin_watch`` (its alarm).
"""
