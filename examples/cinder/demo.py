"""Real cinder on osloxide: one process, then a supervisor with workers. ``make demo`` runs this.

Each step is one line with its time; a step that does not hold its promise ends the demo with
exit status 1 and the end of the log in question. Everything written lives in a directory of its
own under ``.cache/``, removed at the end unless something failed; every process is ended in
every case, Ctrl-C included.

``--stock`` runs the same story on stock oslo.service (eventlet) instead, to compare: there the
steps that only osloxide can pass are left out.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import block_storage
import osloxide
from block_storage import Client
from stage import Child, Failure, Progress, eventually, started

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CACHE = ROOT / ".cache"
LOCK = ROOT / "requirements" / "cinder.lock"
WORKERS = 3
CLIENTS = 8
REQUESTS_UNDER_LOAD = 200


class Lost(NamedTuple):
    """A request without an answer: when it was sent (monotonic seconds) and what came instead."""

    since: float
    error: str


class Load:
    """A client that asks for the list of volumes over one connection until told to stop."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.thread = threading.Thread(target=self.ask, daemon=True)
        self.ending = threading.Event()
        self.answers: Counter[int] = Counter()
        self.cut: list[Lost] = []

    def ask(self) -> None:
        client = Client(self.port)
        while not self.ending.is_set():
            since = time.monotonic()
            try:
                status, _ = client.request("GET", f"/v3/{block_storage.PROJECT}/volumes/detail")
                self.answers[status] += 1
            except Exception as error:  # noqa: BLE001  whatever it is, the client lost a request
                self.cut.append(Lost(since, repr(error)))
        client.close()


class Crowd:
    """CLIENTS of them at once; what they saw is summed up by served() and cut()."""

    def __init__(self, port: int) -> None:
        self.clients = [Load(port) for _ in range(CLIENTS)]

    def __enter__(self) -> "Crowd":
        for client in self.clients:
            client.thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        for client in self.clients:
            client.ending.set()
        for client in self.clients:
            client.thread.join()

    def served(self) -> int:
        return sum(client.answers[200] for client in self.clients)

    def cut(self) -> list[Lost]:
        return [lost for client in self.clients for lost in client.cut]

    def refused(self) -> int:
        """Answers that were not 200."""
        return sum(sum(client.answers.values()) - client.answers[200] for client in self.clients)


class Demo:
    def __init__(self, run: Path, stock: bool) -> None:
        self.run = run
        self.stock = stock
        self.progress = Progress()
        self.child: Child | None = None

    # ---- starting and asking ---------------------------------------------------------------

    @contextlib.contextmanager
    def running(self, name: str, *command: str) -> Iterator[Child]:
        """Run cinder's *command*, under ``osloxide run`` unless --stock; nothing survives it."""
        env = block_storage.environment()
        front = [] if self.stock else [str(block_storage.PREFIX / "bin/osloxide"), "run"]
        child = Child(name, [*front, *command], self.run / f"{name}.log", env)
        self.child = child
        try:
            yield child
        finally:
            child.kill()

    def facts(self, port: int) -> dict[str, Any]:
        client = Client(port, timeout=10)
        try:
            client.connection.request("GET", "/process")
            return dict(json.loads(client.connection.getresponse().read()))
        finally:
            client.close()

    def every_worker(self, port: int, workers: list[int]) -> dict[int, dict[str, Any]]:
        """The facts of each worker, asked over fresh connections until all have answered."""
        seen: dict[int, dict[str, Any]] = {}

        def ask() -> None:
            with contextlib.suppress(OSError):
                answer = self.facts(port)
                seen[answer["pid"]] = answer

        def all_seen() -> bool:
            burst = [threading.Thread(target=ask) for _ in range(4 * len(workers))]
            for thread in burst:
                thread.start()
            for thread in burst:
                thread.join()
            return set(seen) >= set(workers)

        eventually(f"an answer from each of the workers {workers}", 20, all_seen, self.child)
        return {pid: seen[pid] for pid in workers}

    def check_native(self, facts: list[dict[str, Any]]) -> str:
        """No process is monkey-patched or has an eventlet hub, and osloxide provides the launchers.

        :raises Failure: one of them is not so.
        """
        if self.stock:
            one = facts[0]
            return f"stock: patched {len(one['patched'])} modules, {one['hubs']} hub(s)"
        for fact in facts:
            if fact["patched"] or fact["hubs"]:
                raise Failure(f"pid {fact['pid']} is monkey-patched or has an eventlet hub: {fact}")
            if not Path(fact["launcher"]).is_relative_to(Path(osloxide.__file__).parent):
                raise Failure(f"pid {fact['pid']}: launchers come from {fact['launcher']}")
        return f"{len(facts)} process(es), none monkey-patched, no eventlet hub"

    # ---- part one --------------------------------------------------------------------------

    def one_process(self, config: Path, port: int) -> None:
        step = self.progress.step
        self.progress.title("cinder's API, scheduler and volume service in one process")
        script = str(HERE / "cinder_in_one_process.py")
        command = (sys.executable, script, "--config-file", str(config))
        with self.running("one-process", *command) as child:
            with step("API answers") as notes:
                api = Client(port)
                eventually("the API", 60, lambda: api.request("GET", "/healthcheck"), child)
                notes.append(f"pid {child.pid}")
            with step("scheduler and volume service report for duty"):
                eventually("both services up", 30, lambda: self.services_up(api), child)
                eventually("a pool to schedule to", 30, lambda: self.pools(api), child)
            with step("nothing of eventlet runs") as notes:
                notes.append(self.check_native([self.facts(port)]))
                if child.workers():
                    raise Failure(f"expected one process, found children {child.workers()}")
            self.volume_life(api, child)
            with step("SIGTERM") as notes:
                child.process.terminate()
                status = child.ended(25)
                if status != 0:
                    raise Failure(f"exit status {status} instead of 0")
                notes.append("exit status 0, no process left")

    def services_up(self, api: Client) -> bool:
        listed = api.volume_api(200, "GET", "/os-services")["services"]
        up = {s["binary"] for s in listed if s["state"] == "up"}
        return {"cinder-scheduler", "cinder-volume"} <= up

    def pools(self, api: Client) -> bool:
        return bool(api.volume_api(200, "GET", "/scheduler-stats/get_pools")["pools"])

    def volume_life(self, api: Client, child: Child) -> None:
        """Create a volume, snapshot it, make a volume of the snapshot, delete all three."""
        step = self.progress.step

        def settled(kind: str, ident: str) -> bool:
            status = api.volume_api(200, "GET", f"/{kind}s/{ident}")[kind]["status"]
            if "error" in status:
                raise Failure(f"{kind} {ident} has status {status!r}")
            return bool(status == "available")

        def gone(kind: str, ident: str) -> bool:
            status, _ = api.request("GET", f"/v3/{block_storage.PROJECT}/{kind}s/{ident}")
            return status == 404

        def create(kind: str, **request: object) -> str:
            answer = api.volume_api(202, "POST", f"/{kind}s", {kind: request})
            ident = str(answer[kind]["id"])
            eventually(f"{kind} available", 30, lambda: settled(kind, ident), child)
            return ident

        def delete(kind: str, ident: str) -> None:
            api.volume_api(202, "DELETE", f"/{kind}s/{ident}")
            eventually(f"{kind} deleted", 30, lambda: gone(kind, ident), child)

        with step("create a volume, until available"):
            volume = create("volume", size=1, name="demo")
        with step("create a snapshot of it, until available"):
            snapshot = create("snapshot", volume_id=volume, name="demo")
        with step("create a volume from the snapshot, until available"):
            copy = create("volume", size=1, snapshot_id=snapshot, name="copy")
        with step("delete all three, until gone"):
            delete("volume", copy)
            delete("snapshot", snapshot)
            delete("volume", volume)

    # ---- part two --------------------------------------------------------------------------

    def many_processes(self, config: Path, port: int) -> None:
        step = self.progress.step
        self.progress.title(f"cinder-api, unmodified: a supervisor and {WORKERS} workers")
        script = str(block_storage.PREFIX / "bin/cinder-api")
        with self.running("cinder-api", script, "--config-file", str(config)) as child:
            with step("API answers") as notes:
                api = Client(port)
                eventually("the API", 60, lambda: api.request("GET", "/healthcheck"), child)
                workers = eventually("all workers", 20, lambda: self.complete(child), child)
                api.close()
                notes.append(f"supervisor {child.pid}, workers {workers}")
            with step("nothing of eventlet runs") as notes:
                notes.append(self.check_native(list(self.every_worker(port, workers).values())))
            self.serve_under_load(child, port)
            if not self.stock:
                self.look_from_outside(child)
            self.lose_a_worker(child, port)
            self.mutate_configuration(child, port, config)
            self.drain(child, port)

    def complete(self, child: Child) -> list[int] | None:
        workers = child.workers()
        return workers if len(workers) == WORKERS else None

    def serve_under_load(self, child: Child, port: int) -> None:
        with self.progress.step(f"list volumes over {CLIENTS} connections") as notes:
            since = time.monotonic()
            with Crowd(port) as crowd:
                eventually(
                    f"{REQUESTS_UNDER_LOAD} answers",
                    60,
                    lambda: crowd.served() >= REQUESTS_UNDER_LOAD,
                    child,
                )
            seconds = time.monotonic() - since
            if crowd.cut() or crowd.refused():
                raise Failure(f"{crowd.refused()} not answered 200; lost: {crowd.cut()[:3]}")
            notes.append(f"{crowd.served()} answers, {crowd.served() / seconds:.0f} a second")

    def status(self, child: Child) -> list[dict[str, Any]]:
        """The workers as ``osloxide status`` sees them from outside."""
        command = [str(block_storage.PREFIX / "bin/osloxide"), "status", "--json", str(child.pid)]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        if answer.returncode != 0:
            raise Failure(f"osloxide status ended with {answer.returncode}: {answer.stderr}")
        return list(json.loads(answer.stdout)[0]["workers"])

    def look_from_outside(self, child: Child) -> None:
        with self.progress.step("osloxide status") as notes:
            workers = self.status(child)
            if sorted(worker["pid"] for worker in workers) != child.workers():
                raise Failure(f"the scoreboard says {workers}, running are {child.workers()}")
            served = [worker["served"] for worker in workers]
            if sum(served) < REQUESTS_UNDER_LOAD:
                raise Failure(f"the scoreboard counted {served} requests, too few")
            megabytes = [worker["rss_bytes"] // 2**20 for worker in workers]
            notes.append(f"requests served {served}, MiB resident {megabytes}")

    def lose_a_worker(self, child: Child, port: int) -> None:
        with self.progress.step("kill -9 of a worker, under load") as notes:
            before = child.workers()
            with Crowd(port) as crowd:
                eventually("the load", 30, lambda: crowd.served() >= CLIENTS, child)
                since_boot = time.clock_gettime(time.CLOCK_BOOTTIME)
                since = time.monotonic()
                os.kill(before[0], signal.SIGKILL)
                replaced = eventually(
                    "a new worker", 20, lambda: self.replaced(child, before[0]), child
                )
                reaped = time.monotonic()
                # The kernel's word: this process is busy with its clients and looks late.
                forked = max(started(worker) for worker in replaced) - since_boot
                self.every_worker(port, replaced)
                serving = time.monotonic() - since
            late = [lost for lost in crowd.cut() if lost.since > reaped]
            if late or crowd.refused():
                raise Failure(f"requests were lost after the worker had been replaced: {late}")
            if not self.stock and sum(w["respawns"] for w in self.status(child)) != 1:
                raise Failure(f"the scoreboard should count one respawn: {self.status(child)}")
            notes.append(
                f"replaced after {max(0, 1000 * forked):.0f} ms, "
                f"serving after {1000 * serving:.0f} ms, "
                f"{crowd.served()} answers meanwhile, {len(crowd.cut())} lost with the worker"
            )

    def replaced(self, child: Child, dead: int) -> list[int] | None:
        workers = self.complete(child)
        return workers if workers and dead not in workers else None

    def mutate_configuration(self, child: Child, port: int, config: Path) -> None:
        with self.progress.step("SIGHUP with a changed option, under load") as notes:
            before = child.workers()
            with Crowd(port) as crowd:
                eventually("the load", 30, lambda: crowd.served() >= CLIENTS, child)
                config.write_text(config.read_text().replace("debug = false", "debug = true"))
                child.process.send_signal(signal.SIGHUP)
                eventually(
                    "the new value in every worker",
                    20,
                    lambda: all(f["debug"] for f in self.every_worker(port, before).values()),
                    child,
                )
            if child.workers() != before:
                raise Failure(f"workers {before} became {child.workers()}")
            if crowd.cut() or crowd.refused():
                raise Failure(f"{crowd.refused()} not answered 200; lost: {crowd.cut()[:3]}")
            notes.append(f"same pids, new value everywhere, 0 of {crowd.served()} requests lost")

    def drain(self, child: Child, port: int) -> None:
        with self.progress.step("SIGTERM while a request is in flight") as notes:
            client = Client(port)
            client.connection.request("GET", "/process?hold=1")
            response = client.connection.getresponse()
            response.readline()  # the answer has begun: the request is in flight
            child.process.terminate()
            rest = response.read()
            if rest != b"held\n":
                raise Failure(f"the answer in flight was cut: {rest!r}")
            status = child.ended(25)
            if status != 0:
                raise Failure(f"exit status {status} instead of 0")
            notes.append("answer complete, exit status 0, no process left")

    # ---- the story -------------------------------------------------------------------------

    def tell(self) -> None:
        config, port = block_storage.configure(self.run, WORKERS)
        self.progress.title("preparation")
        with self.progress.step("empty cinder database (SQLite)") as notes:
            cached = block_storage.migrated_schema(self.run, config, CACHE, LOCK)
            notes.append("from the cache" if cached else "migrated; kept for the next time")
        self.one_process(config, port)
        self.many_processes(config, port)


def interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stock", action="store_true", help="run on stock oslo.service instead")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, interrupt)

    CACHE.mkdir(exist_ok=True)
    run = Path(tempfile.mkdtemp(prefix="demo-", dir=CACHE))
    demo = Demo(run, options.stock)
    try:
        demo.tell()
    except KeyboardInterrupt:
        print("\ninterrupted; every process has been ended")
        shutil.rmtree(run)
        return 130
    except Exception as error:  # noqa: BLE001  reported with the log that explains it
        print(f"\nFAIL in step {demo.progress.step_name!r}: {error}")
        if not isinstance(error, Failure):
            print(f"({type(error).__name__})")
        if demo.child is not None:
            print(f"--- end of {demo.child.log}\n{demo.child.tail()}")
        return 1
    shutil.rmtree(run)
    print(f"\nPASS in {demo.progress.elapsed():.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
