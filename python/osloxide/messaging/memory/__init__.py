"""The transport ``osloxide+memory://``. Importing the package does no work."""
