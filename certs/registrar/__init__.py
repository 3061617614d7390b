"""What the CA decides: functions of a transaction of the store.

``registrar`` (who gets a certificate), ``revocations`` (what is revoked), ``bundles`` (which roots are trusted),
``followers`` (which sidecars poll, and what they have), ``rotation`` (a new root in the place of the old one).
"""
