"""The CA's decisions, as functions of a store transaction.

``registrar`` (issuing certificates), ``revocations`` (what is revoked), ``bundles`` (which roots are trusted), ``followers``
(which sidecars poll, and what each has), ``twins`` (which certificates of one identity are in use), ``rotation`` (replacing
the root), ``passes`` (people, for a while), ``commands`` (what refusals tell people to run).
"""
