"""The HOPS benchmark: functions, documents and models whose true influences are known.

Every module is also a command of ``hops`` (see :mod:`hops.cli`).  Importing this package
imports no torch; :mod:`hops.world` composes the commands into one call.
"""
