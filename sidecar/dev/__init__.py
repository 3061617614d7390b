"""``sidecar dev``: a whole mesh in one process.

``dev_mesh`` (the CA and the sidecars), ``plan`` (their local ports), ``control`` (where
`sidecar verify` asks), ``reporting`` (what the dashboard shows).
"""
