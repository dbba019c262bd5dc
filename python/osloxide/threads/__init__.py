"""Threads that run Python code for osloxide: timers, the asyncio event loop, pool threads.

Rooms and their files: docs/architecture.md. Private: names may move without notice.
"""
