"""The identity of this sidecar: its certificate, key, trust bundle and revocations.

``agent`` (enrolment, renewal, following the CA), ``accept`` (checks of the CA's answers), ``saved_state`` (the kept state,
checked), ``statedir`` (its files), ``credentials`` (certificate, key and bundle from files), ``schedule`` (when to renew).
"""
