"""What libraries make in their first use is there when workers are forked, and harms none of them.

Routes, SQLAlchemy and oslo.db as they are released; Werkzeug is in tests/services.
"""

from __future__ import annotations

import json
import logging
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import pytest
from _children import environment, run_command, run_python
from support.serving import fetch, starter

from osloxide.activation import before_fork

SITE = """
import json, os
import routes
import sqlalchemy
from sqlalchemy import Column, ForeignKey, Integer, create_engine, event, orm, select
from sqlalchemy.pool import NullPool

compiled_in, configured_in, connected_in = [], [], []
Base = orm.declarative_base()

class Volume(Base):
    __tablename__ = "volumes"
    id = Column(Integer, primary_key=True)
    attachments = orm.relationship("Attachment")

class Attachment(Base):
    __tablename__ = "attachments"
    id = Column(Integer, primary_key=True)
    volume_id = Column(ForeignKey("volumes.id"))

class Table(routes.Mapper):
    def create_regs(self, *arguments, **keywords):
        compiled_in.append(os.getpid())
        super().create_regs(*arguments, **keywords)

table = Table()
table.connect("/volumes/{id}", controller="volumes", action="show")
engine = create_engine("sqlite:///site.sqlite", poolclass=NullPool)

@event.listens_for(Volume, "mapper_configured", propagate=True)
def configured(mapper, kind):
    configured_in.append(os.getpid())

@event.listens_for(engine, "connect")
def connected(connection, record):
    connected_in.append(os.getpid())

def application(environ, start_response):
    loaded = list(configured_in), list(compiled_in), list(connected_in)
    Base.metadata.create_all(engine)
    with orm.Session(engine) as session:
        volume = Volume(attachments=[Attachment(), Attachment()])
        session.add(volume)
        session.commit()
        count = len(session.get(Volume, volume.id).attachments)
    route = table.match("/volumes/7")
    start_response("200 OK", [])
    return [json.dumps([os.getpid(), *loaded, count, route["id"]]).encode()]
"""

BROKEN = """
import sqlalchemy
from sqlalchemy import Column, ForeignKey, Integer, orm, select

Base = orm.declarative_base()

class Volume(Base):
    __tablename__ = "volumes"
    id = Column(Integer, primary_key=True)
    first = Column(Integer)
    # Neither is the first or the last property of the model.
    attachments = orm.relationship("Attachment", back_populates="volume")
    last = Column(Integer)

class Snapshot(Base):
    __tablename__ = "snapshots"
    id = Column(Integer, primary_key=True)
    volume_id = Column(ForeignKey("volumes.id"))
    volume = orm.relationship(Volume)

def define():
    class Attachment(Base):
        __tablename__ = "attachments"
        id = Column(Integer, primary_key=True)
        volume_id = Column(ForeignKey("volumes.id"))
        volume = orm.relationship("Volume", back_populates="attachments")

def application(environ, start_response):
    if environ["PATH_INFO"] == "/define":
        define()
    try:
        query = select(Snapshot).join(Snapshot.volume).join(Volume.attachments)
        answer = str(query)
    except Exception as error:
        answer = f"{type(error).__name__} {error}"
    start_response("200 OK", [])
    return [answer.encode()]
"""

DATABASE = """
from oslo_config import cfg
from oslo_db import options
from oslo_db.sqlalchemy import engines

cfg.CONF.register_opts(options.database_opts, "database")
cfg.CONF([])
cfg.CONF.set_override("connection", "mysql+pymysql://user:word@203.0.113.1/cinder", "database")
"""

LAUNCHED = """
import os, signal
from oslo_config import cfg
from oslo_service import service
import site_under_test as site

class Service(service.ServiceBase):
    def start(self):
        print("in the parent" if site.configured_in == [os.getppid()] * len(site.configured_in)
              and site.compiled_in == [os.getppid()] and not site.connected_in else "elsewhere",
              flush=True)
        os.kill(os.getppid(), signal.SIGTERM)

    def stop(self): pass
    def wait(self): pass
    def reset(self): pass

cfg.CONF([])
launcher = service.ProcessLauncher(cfg.CONF, restart_method="mutate")
launcher.launch_service(Service(), workers=1)
launcher.wait()
"""


@pytest.mark.parametrize("way", ["--preload", "--warm"])
def test_workers_inherit_compiled_routes_and_configured_mappers(tmp_path: Path, way: str) -> None:
    (tmp_path / "mysite.py").write_text(SITE)
    with starter(tmp_path) as start:
        site = start("serve", "mysite", way, "-w", "2", "-b", "127.0.0.1:0")
        text = " ".join(fetch(site.port()))
        worker, configured, compiled, connected, count, route = json.loads(text)
        assert len(configured) == len(compiled) == 1
        assert worker not in configured + compiled
        assert connected == []
        assert (count, route) == (2, "7")
        assert site.stop() == 0, site.log


def test_workers_of_a_process_launcher_inherit_them(tmp_path: Path) -> None:
    (tmp_path / "site_under_test.py").write_text(SITE)
    done = run_command(
        [sys.executable, "-m", "osloxide", "run", sys.executable, "-c", LAUNCHED],
        environ=environment(PYTHONPATH=str(tmp_path)),
        cwd=tmp_path,
    )

    assert (done.returncode, done.stdout) == (0, "in the parent\n"), done.stderr


def test_a_model_that_a_request_imports_is_configured_as_if_nobody_had_tried(
    tmp_path: Path,
) -> None:
    (tmp_path / "mysite.py").write_text(BROKEN)
    answers = {}
    with starter(tmp_path) as start:
        for ways in ([], ["--warm"]):
            site = start("serve", "mysite", "-w", "1", "--master", "-b", "127.0.0.1:0", *ways)
            answers[str(ways)] = fetch(site.port(), "/define")
            assert site.stop() == 0, site.log

    first, second = answers.values()
    assert first == second
    assert "JOIN" in first


def test_mappers_that_cannot_be_configured_say_so_to_each_request_as_ever(tmp_path: Path) -> None:
    (tmp_path / "mysite.py").write_text(BROKEN)
    answers = {}
    with starter(tmp_path) as start:
        for ways in ([], ["--warm"]):
            words = ["-w", "1", "--master", "--log-level", "debug", "-b", "127.0.0.1:0", *ways]
            site = start("serve", "mysite", *words)
            answers[str(ways)] = [fetch(site.port(), "/"), fetch(site.port(), "/")]
            is_named = "sqlalchemy.orm.mapper is not prepared before the fork" in site.log
            assert is_named == bool(ways)
            assert site.stop() == 0, site.log

    first, second = answers.values()
    assert first == second
    assert "failed to locate a name" in " ".join(first[0])


@pytest.mark.parametrize("has_database", [False, True], ids=["libraries", "oslo.db"])
def test_preparations_open_nothing_and_start_no_thread(tmp_path: Path, has_database: bool) -> None:
    if has_database:
        pytest.importorskip("oslo_db")
        pytest.importorskip("pymysql")
    (tmp_path / "mysite.py").write_text(SITE)
    (tmp_path / "mydatabase.py").write_text(DATABASE if has_database else "")
    done = run_python(
        f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        import mydatabase, mysite
        from osloxide.activation import before_fork

        opens = ("socket", "sqlite3", "_thread", "subprocess", "os.fork", "os.posix_spawn")
        seen = []
        sys.addaudithook(
            lambda event, _: seen.append(event) if event.startswith(opens) else None
        )
        is_there = "pymysql" in sys.modules
        before_fork.prepare()
        print(seen, is_there, "pymysql" in sys.modules, len(mysite.compiled_in))
        """
    )

    assert done.stdout == f"[] False {has_database} 1\n", done.stderr


def test_nothing_that_was_not_imported_is_prepared() -> None:
    done = run_python(
        """
        import sys
        from osloxide.activation import before_fork

        before = set(sys.modules)
        before_fork.prepare()
        print(sorted(set(sys.modules) - before))
        """
    )

    assert done.stdout == "[]\n", done.stderr


def test_routes_of_a_directory_are_left_to_the_request_that_scans_it() -> None:
    done = run_python(
        textwrap.dedent("""
        import routes
        from osloxide.activation import before_fork

        tables = [
            routes.Mapper(directory="/nowhere"),
            routes.Mapper(always_scan=True),
            routes.Mapper(controller_scan=None),
            routes.Mapper(),
        ]
        before_fork.prepare()
        print([table._created_regs for table in tables])
        """)
    )

    assert done.stdout == "[False, False, False, True]\n", done.stderr


def test_a_preparation_that_fails_is_logged_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    table = {"a_library": f"{__name__}:_fail", "another_library": f"{__name__}:_note"}
    monkeypatch.setattr(before_fork, "TABLE", table)
    for name in table:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    caplog.set_level(logging.DEBUG, "osloxide")

    before_fork.prepare()

    assert sys.modules["another_library"].is_prepared  # type: ignore[attr-defined]
    assert "a_library is not prepared before the fork" in caplog.text
    assert "out of order" in caplog.text
    assert all(record.levelno == logging.DEBUG for record in caplog.records)


def _fail(_module: ModuleType) -> None:
    raise RuntimeError("out of order")


def _note(module: ModuleType) -> None:
    vars(module)["is_prepared"] = True
