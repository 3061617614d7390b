"""The command line. Its modules read options, call, and print; no logic.

``commands`` (the table of commands; each is loaded when it is used), ``ca`` (``init``, ``issue``, ``renew-issuing``,
``inspect``), ``access`` (``token``, ``enrolment``, ``revoke``), ``records`` (``list``, ``audit``), ``rotate``
(``rotate-root``), ``serve``, ``options`` (what several of them read).
"""
