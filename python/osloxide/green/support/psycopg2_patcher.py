"""``eventlet.support.psycopg2_patcher``: nothing to do, native threads may wait in libpq."""

__all__ = ["make_psycopg_green"]


def make_psycopg_green() -> None:
    """Accepted: psycopg2 waits as it does without eventlet."""
