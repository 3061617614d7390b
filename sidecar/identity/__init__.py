"""The identity of a peer, and the verification of its certificate. Pure.

``spiffe`` (SPIFFE IDs and X.509-SVIDs), ``judge`` (verifies a peer's certificate), ``reasons`` (why a connection is refused
or ends), ``keys`` (new keys, and the digests of keys and certificates).
"""
