"""HTTP conformance: raw bytes in, a strict verdict out, for any WSGI server.

``python -m conformance SERVER`` runs every row against a server; ``test_http_conformance.py`` runs
them against osloxide. The rules come from RFC 9110, RFC 9112 and PEP 3333; a row's docstring names
what it promises. Nothing here imports the server under test: it runs in a process of its own.
"""

import sys
from pathlib import Path

# Without pytest nothing has put the shared helpers of tests/ on the path.
sys.path.append(str(Path(__file__).resolve().parents[2]))

from conformance import rows_clients, rows_grammar, rows_request, rows_response
from conformance.verdict import ROWS as ALL_ROWS

__all__ = ["ALL_ROWS", "rows_clients", "rows_grammar", "rows_request", "rows_response"]
