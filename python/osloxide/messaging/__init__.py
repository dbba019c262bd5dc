"""oslo.messaging on osloxide: its executor, its RabbitMQ driver, and a transport without a broker.

Importing the package does no work. ``hook`` holds the amendments that the import hook makes;
``memory`` is loaded by oslo.messaging itself, through the entry point ``oslo.messaging.drivers``.
"""
