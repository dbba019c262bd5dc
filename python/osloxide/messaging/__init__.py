"""oslo.messaging on osloxide: transports that need no broker.

Importing the package does no work. :mod:`osloxide.messaging.memory` is loaded by
oslo.messaging itself, through the entry point ``oslo.messaging.drivers``.
"""
