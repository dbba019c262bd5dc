"""oslo.messaging over RabbitMQ, amended. Importing the package does no work."""
