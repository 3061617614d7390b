"""What the CA remembers.

``store`` (the tables and their transactions), ``migrations`` (their schema, version by version), ``writer`` (one transaction
for all that came in meanwhile), ``audit`` (the chain of hashes over the audit log).
"""
