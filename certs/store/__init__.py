"""The CA's records.

``store`` (the tables and their transactions), ``migrations`` (the schema, version by version), ``writer`` (group commit),
``audit`` (the hash chain over the audit log).
"""
