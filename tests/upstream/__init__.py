"""Running a test suite of another project, unmodified: what the runners of such suites share."""
