"""Launchers: what runs services, in this process or in workers, from start to end.

Rooms and their files: docs/architecture.md. Private: names may move without notice.
"""
