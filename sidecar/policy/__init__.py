"""``mesh.yaml``: the services of a mesh, and who may call whom. Pure."""
