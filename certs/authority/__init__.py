"""The CA's own keys and certificates.

``authority`` (makes, loads and renews the CA's directory), ``files`` (reads files with keys strictly and writes them
atomically), ``pemfiles`` (the CA's keys and certificates in PEM), ``pem_or_der`` (certificates from any file).
"""
