"""``eventlet.green``: the standard library.

Native threads may wait in it as it is. What differs from the standard module of the same name are
waits that a timeout must end: sockets, TLS, ``select``, ``time.sleep`` and child processes.
"""
