"""What both ends of the CA's protocol share; each literal is defined once. Pure, except for ``client``, ``looking``
and ``addresses``.

``wire`` (paths, headers, fields, statuses, limits), ``denial`` (the reason words of refusals), ``enrolment`` (tokens and
enrolment secrets), ``csr`` (the rules for a CSR, and the proof of possession), ``x509_profile`` (the certificate profiles),
``documents`` (the signed trust bundle and revocation list), ``access_pass`` (a person's pass), ``inspection`` and ``fields``
(a certificate's broken rules and its fields as text), ``addresses`` (where the CA is), ``mesh_state`` (where
``sidecar inject`` keeps keys and secrets), ``report`` (what a sidecar reports about itself), ``catalogue`` (the CA's
metrics), ``client`` (the sidecar's end), ``looking`` (following what a CA's admin socket shows).
"""
