"""Which service a peer is, and whether its certificate is believed. Pure.

``spiffe`` (SPIFFE IDs and X.509-SVIDs), ``judge`` (the one judgement of a peer's certificate), ``reasons`` (the words that
a connection can end with), ``keys`` (new keys, and the digests of keys and certificates).
"""
