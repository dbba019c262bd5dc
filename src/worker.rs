//! To be filled: see docs/architecture.md.
