"""Signals: the handlers, what carries a request to a thread, and waits that hear a signal.

Rooms and their files: docs/architecture.md. Private: names may move without notice.
"""
