# The only entry points; .ci/run calls `make test`.
.PHONY: test
test:
	cargo test
