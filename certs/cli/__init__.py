"""The command line. Its modules parse options, call functions and print; they contain no logic.

``commands`` (the table of commands; each is imported when it is used), ``ca`` (``init``, ``issue``, ``renew-issuing``,
``inspect``), ``access`` (``token``, ``enrolment``, ``revoke``), ``records`` (``list``, ``audit``), ``rotate``
(``rotate-root``), ``serve``, ``passes`` (``pass``), ``options`` (shared options and arguments), ``reports``, ``alarms``.
"""
