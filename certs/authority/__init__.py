"""The CA's own keys and certificates.

``authority`` (the CA's directory: made, loaded, renewed), ``files`` (files that hold keys, read with suspicion and written
atomically), ``pemfiles`` (the CA's keys and certificates in PEM), ``pem_or_der`` (certificates out of any file).
"""
