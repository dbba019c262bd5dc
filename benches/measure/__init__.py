"""Measures osloxide beside its peers; see benches/README.md for the rules."""
