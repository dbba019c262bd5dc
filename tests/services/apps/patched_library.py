"""A program that monkey-patches at import, and then works with one library: ``NAME DIRECTORY``.

Owns one short piece of work for each library, of the kind that services do in greenthreads. Prints
what came of it as JSON. Knows nothing of osloxide: the real eventlet gives the same answers.
"""

import eventlet

eventlet.monkey_patch()

import json  # noqa: E402
import os  # noqa: E402
import socket  # noqa: E402
import sys  # noqa: E402


def taskflow(directory):
    """A parallel flow on greenthreads: what does not depend on each other runs side by side."""
    import futurist
    from taskflow import engines, task
    from taskflow.patterns import graph_flow

    both = eventlet.event.Event()
    begun = []

    class Meet(task.Task):
        def execute(self):
            begun.append(self.name)
            if len(begun) == 2:
                both.send(None)
            both.wait()
            return self.name

    class Join(task.Task):
        def execute(self, one, two):
            return sorted([one, two])

    flow = graph_flow.Flow("meet").add(
        Meet("one", provides="one"), Meet("two", provides="two"), Join("join", provides="all")
    )
    with futurist.GreenThreadPoolExecutor(max_workers=4) as executor:
        engine = engines.load(flow, engine="parallel", executor=executor)
        engine.run()
    return engine.storage.fetch("all")


def tooz(directory):
    """Greenthreads contend for a lock that is held over a wait; heartbeats run beside them."""
    from tooz import coordination

    def increment(path, lock):
        with lock:
            with open(path) as file:
                seen = int(file.read())
            eventlet.sleep(0.001)
            with open(path, "w") as file:
                file.write(str(seen + 1))

    path = os.path.join(directory, "number")
    with open(path, "w") as file:
        file.write("0")
    members = []
    for number in range(4):
        member = coordination.get_coordinator(f"file://{directory}", f"member-{number}".encode())
        member.start(start_heart=True)
        members.append(member)
    pool = eventlet.GreenPool()
    for turn in range(20):
        pool.spawn(increment, path, members[turn % 4].get_lock(b"lock"))
    pool.waitall()
    for member in members:
        member.stop()
    with open(path) as file:
        return int(file.read())


def oslo_db(directory):
    """Sessions of many greenthreads on one engine, with a retry after a deadlock."""
    import sqlalchemy as sa
    from oslo_db import api, exception
    from oslo_db.sqlalchemy import enginefacade
    from sqlalchemy import orm

    base = orm.declarative_base()

    class Row(base):
        __tablename__ = "row"
        id = sa.Column(sa.Integer, primary_key=True)

    manager = enginefacade.transaction_context()
    manager.configure(connection=f"sqlite:///{directory}/rows.db")
    base.metadata.create_all(manager.writer.get_engine())

    @enginefacade.transaction_context_provider
    class Context:
        pass

    refused = []

    @api.wrap_db_retry(max_retries=3, retry_interval=0.01, retry_on_deadlock=True)
    def add(number):
        if number not in refused:
            refused.append(number)
            raise exception.DBDeadlock()
        with manager.writer.using(Context()) as session:
            session.add(Row(id=number))

    pool = eventlet.GreenPool(8)
    for number in range(24):
        pool.spawn(add, number)
    pool.waitall()
    with manager.reader.using(Context()) as session:
        return session.query(Row).count()


def os_brick(directory):
    """Commands of an executor, one in each greenthread, and a lock around them."""
    from os_brick import executor, utils
    from oslo_concurrency import lockutils, processutils

    lockutils.set_defaults(directory)
    runner = executor.Executor(None, execute=processutils.execute)

    @utils.trace
    @lockutils.synchronized("brick", external=True)
    def run(number):
        return int(runner._execute("expr", str(number), "+", "1")[0])

    pool = eventlet.GreenPool()
    made = sorted(pool.imap(run, range(8)))
    failed = []

    def fail():
        try:
            runner._execute("false")
        except processutils.ProcessExecutionError as error:
            failed.append(error.exit_code)

    executor.Thread(target=fail).start()
    while not failed:
        eventlet.sleep(0.01)
    return [made, failed]


def ovs(directory):
    """The poll loop of the Open vSwitch library: a greenthread of its own, woken by a socket."""
    from ovs import poller

    here, there = socket.socketpair()
    heard = []

    def loop():
        while not heard:
            turn = poller.Poller()
            turn.fd_wait(here, poller.POLLIN)
            turn.timer_wait(5000)
            turn.block()
            if (there_is := here.recv(100)) != b"":
                heard.append(there_is.decode())

    running = eventlet.spawn(loop)
    eventlet.sleep(0)
    there.sendall(b"update")
    running.wait()
    return heard


def websockify(directory):
    """The proxy that novncproxy is made of: a client's frames go to a server and come back."""
    import websockify

    def serve():
        peer, _ = echo.accept()
        while data := peer.recv(1000):
            peer.sendall(data)

    echo = eventlet.listen(("127.0.0.1", 0))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    proxy = websockify.WebSocketProxy(
        listen_host="127.0.0.1",
        listen_port=port,
        target_host="127.0.0.1",
        target_port=echo.getsockname()[1],
        run_once=True,
    )
    eventlet.spawn(serve)
    child = os.fork()
    if child == 0:
        proxy.start_server()
        os._exit(0)
    with eventlet.Timeout(30):
        while True:
            try:
                client = socket.create_connection(("127.0.0.1", port))
                break
            except ConnectionRefusedError:
                eventlet.sleep(0.05)
        client.sendall(
            b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        reader = client.makefile("rb")
        status = reader.readline().split()[1].decode()
        while reader.readline() != b"\r\n":
            pass
        client.sendall(b"\x82\x85\x00\x00\x00\x00hello")  # one binary frame, its mask is zero
        frame = reader.read(7)
        client.close()
        reader.close()
    os.waitpid(child, 0)
    return [status, frame[:2].hex(), frame[2:].decode()]


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](sys.argv[2])))
