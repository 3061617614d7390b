"""A sidecar's own identity, all its life.

``agent`` (enrolment, renewal, following the CA), ``accept`` (what is accepted of the CA's answers), ``saved_state`` and
``statedir`` (what is kept on disk), ``credentials`` (certificate, key and bundle, checked), ``schedule`` (when to renew).
"""
