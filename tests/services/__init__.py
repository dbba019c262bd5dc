"""Black-box proof: real services, a real broker, a real database, real signals."""
