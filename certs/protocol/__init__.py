"""All that both ends of the CA's protocol agree on, each literal once. Pure, but for ``client``.

``wire`` (paths, headers, fields, statuses, limits), ``denial`` (the words of a refusal), ``enrolment`` (tokens and enrolment
secrets), ``csr`` (what may be asked for, and the proof of a key), ``x509_profile`` (what is in a certificate),
``documents`` (the signed bundle and list of revocations), ``inspection`` and ``fields`` (which rules a certificate breaks,
and what it says), ``client`` (the sidecar's end).
"""
