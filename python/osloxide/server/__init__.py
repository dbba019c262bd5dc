"""The Python side of the WSGI server: listening sockets, options, routing, what proxies say,
reports of slow requests.

Rooms and their files: docs/architecture.md. Private: names may move without notice.
"""
