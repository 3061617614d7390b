"""The ``sidecar`` command. Its modules read options, call functions and print results; they hold no
logic.

``commands`` (the table of commands; each is loaded when it is used), ``run``, ``connect``, ``dev``, ``check``, ``policy``,
``status`` (``status``, ``health``), ``explain``, ``inject``, ``schema``, ``trust``, ``probe``, ``verify``, ``alarms``,
``dashboard``.
"""
