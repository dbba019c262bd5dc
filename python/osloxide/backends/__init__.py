"""The two backends that oslo.service knows, both served by one implementation."""
