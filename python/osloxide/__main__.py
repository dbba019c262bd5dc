"""``python -m osloxide`` is the ``osloxide`` command."""

import sys

from osloxide.cli import main

if __name__ == "__main__":
    sys.exit(main())
