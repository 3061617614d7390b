"""``mesh.yaml``: the services of a mesh, and who may call whom. Pure.

``mesh_yaml`` (its keys), ``names`` (services, ports and SPIFFE patterns in it), ``mesh`` (the file as a value), ``decide``
(may this peer call that port, and why).
"""
