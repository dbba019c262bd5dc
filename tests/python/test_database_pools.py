"""A forked child neither uses nor ends the database connections of its parent."""

from __future__ import annotations

import sys
from pathlib import Path

from _children import environment, run_command

PROGRAM = """
import gc, os, socket, sqlite3
import sqlalchemy
from sqlalchemy import pool

class Connection(sqlite3.Connection):
    ours, peer = socket.socketpair()

    def close(self):
        self.ours.send(b"goodbye")
        super().close()

def connect():
    made.append(os.getpid())
    return sqlite3.connect("file.db", check_same_thread=False, factory=Connection)

made = []
engine = sqlalchemy.create_engine(
    "sqlite://", creator=connect, poolclass=pool.QueuePool, logging_name="main", pool_size=3
)
serializable = engine.execution_options(isolation_level="SERIALIZABLE")

# As oslo.db does.
@sqlalchemy.event.listens_for(engine, "connect")
def connected(connection, record):
    record.info["pid"] = os.getpid()

@sqlalchemy.event.listens_for(engine, "checkout")
def checked_out(connection, record, fairy):
    if record.info["pid"] != os.getpid():
        raise sqlalchemy.exc.DisconnectionError("another process's")

def query(engine):
    with engine.connect() as connection:
        assert connection.execute(sqlalchemy.text("SELECT 1")).scalar() == 1

busy = engine.connect()
query(engine)
pid = os.fork()
if pid == 0:
    query(engine)
    query(serializable)
    gc.collect()
    os._exit(0 if made[-1] == os.getpid() else 1)
assert os.waitpid(pid, 0)[1] == 0
assert busy.execute(sqlalchemy.text("SELECT 1")).scalar() == 1
Connection.peer.setblocking(False)
try:
    print(Connection.peer.recv(100))
except BlockingIOError:
    print("nothing")
print(sum(pid == os.getpid() for pid in made))
"""


def test_a_child_opens_connections_of_its_own_and_says_nothing_on_those_of_its_parent(
    tmp_path: Path,
) -> None:
    done = run_command(
        [sys.executable, "-m", "osloxide", "run", sys.executable, "-c", PROGRAM],
        environ=environment(),
        cwd=tmp_path,
    )

    assert (done.returncode, done.stdout) == (0, "nothing\n2\n"), done.stderr
