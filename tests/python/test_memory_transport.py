"""The transport osloxide+memory:// keeps oslo.messaging's promises without a broker."""

import os
import threading
import time
import uuid

import pytest

oslo_messaging = pytest.importorskip(
    "oslo_messaging", reason="oslo.messaging is an optional companion; `make setup` installs it"
)

from oslo_config import cfg  # noqa: E402
from oslo_messaging import conffixture  # noqa: E402
from oslo_messaging._drivers import base  # noqa: E402

from osloxide.messaging.memory import exchange as exchanges  # noqa: E402
from osloxide.messaging.memory.driver import MemoryDriver  # noqa: E402

WAIT = 10.0  # seconds that an event may take before the test fails


class Target:
    """What the driver reads of oslo_messaging.Target."""

    def __init__(self, topic, server=None, fanout=False, exchange="openstack"):
        self.topic, self.server, self.fanout, self.exchange = topic, server, fanout, exchange


class Inbox:
    """A listener's callback that keeps what arrives."""

    def __init__(self):
        self.messages = []
        self.arrived = threading.Condition()

    def __call__(self, batch):
        with self.arrived:
            self.messages.extend(batch)
            self.arrived.notify_all()

    def wait_for(self, count):
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.messages) >= count, WAIT)
        return self.messages


@pytest.fixture
def topic():
    return f"topic-{uuid.uuid4().hex}"


@pytest.fixture
def driver():
    return MemoryDriver(None, None, default_exchange="openstack")


@pytest.fixture
def transport():
    fixture = conffixture.ConfFixture(cfg.CONF)
    cfg.CONF([])
    fixture.setUp()
    yield oslo_messaging.get_rpc_transport(
        cfg.CONF, url="osloxide+memory://", allowed_remote_exmods=["concurrent.futures._base"]
    )
    fixture.cleanUp()
    cfg.CONF.reset()


class Endpoint:
    target = oslo_messaging.Target(version="1.0")

    def echo(self, ctxt, x):
        return x

    def whoami(self, ctxt):
        return threading.current_thread().name

    def fail(self, ctxt, text):
        raise ValueError(text)

    def unserialisable(self, ctxt):
        return object()


@pytest.fixture
def server(transport, topic):
    rpc_server = oslo_messaging.get_rpc_server(
        transport, oslo_messaging.Target(topic=topic, server="here"), [Endpoint()]
    )
    rpc_server.start()
    yield rpc_server
    rpc_server.stop()
    rpc_server.wait()


@pytest.fixture
def client(transport, topic):
    return oslo_messaging.get_rpc_client(transport, oslo_messaging.Target(topic=topic))


def test_the_url_loads_the_driver_and_a_call_is_answered(server, client):
    assert client.call({}, "echo", x={"deep": [1, "ü"]}) == {"deep": [1, "ü"]}


def test_an_endpoint_runs_on_a_pool_thread_not_on_the_callers(server, client):
    assert client.call({}, "whoami") != threading.current_thread().name


def test_a_remote_exception_is_rebuilt_for_the_caller(server, client):
    with pytest.raises(ValueError, match="out of paper"):
        client.call({}, "fail", text="out of paper")


def test_a_reply_that_cannot_be_serialised_fails_the_call_at_once(server, client):
    with pytest.raises(Exception, match="object"):
        client.prepare(timeout=WAIT).call({}, "unserialisable")


def test_a_call_nobody_answers_times_out(transport, topic):
    client = oslo_messaging.get_rpc_client(transport, oslo_messaging.Target(topic=topic))
    with pytest.raises(oslo_messaging.MessagingTimeout, match=topic):
        client.prepare(timeout=0.01).call({}, "echo", x=1)


def test_a_listener_gets_a_copy_that_the_sender_cannot_change(driver, topic):
    inbox = Inbox()
    listener = driver.listen(Target(topic, "a"), 1, None)
    listener.start(inbox)
    message = {"args": [1]}

    driver.send(Target(topic), {}, message)
    message["args"].append(2)

    assert inbox.wait_for(1)[0].message == {"args": [1]}


def test_casts_sent_before_the_server_started_arrive_in_order(driver, topic):
    for number in range(100):
        driver.send(Target(topic), {}, {"n": number})
    inbox = Inbox()

    driver.listen(Target(topic, "a"), 1, None).start(inbox)

    assert [m.message["n"] for m in inbox.wait_for(100)] == list(range(100))


def test_servers_of_one_topic_take_turns(driver, topic):
    inboxes = [Inbox(), Inbox()]
    for name, inbox in zip("ab", inboxes, strict=True):
        driver.listen(Target(topic, name), 1, None).start(inbox)

    for number in range(10):
        driver.send(Target(topic), {}, {"n": number})

    assert [len(inbox.messages) for inbox in inboxes] == [5, 5]


def test_fanout_reaches_every_server_and_a_named_server_only_itself(driver, topic):
    inboxes = {name: Inbox() for name in "ab"}
    for name, inbox in inboxes.items():
        driver.listen(Target(topic, name), 1, None).start(inbox)

    driver.send(Target(topic, fanout=True), {}, {"n": 1})
    driver.send(Target(topic, server="b"), {}, {"n": 2})

    assert [m.message["n"] for m in inboxes["a"].messages] == [1]
    assert [m.message["n"] for m in inboxes["b"].messages] == [1, 2]


def test_what_arrives_after_stop_goes_to_the_next_server(driver, topic):
    first, second = Inbox(), Inbox()
    listener = driver.listen(Target(topic, "a"), 1, None)
    listener.start(first)
    listener.stop()
    driver.send(Target(topic), {}, {"n": 1})

    driver.listen(Target(topic, "b"), 1, None).start(second)

    assert first.messages == []
    assert second.wait_for(1)[0].message == {"n": 1}


def test_an_executor_that_was_shut_down_loses_nothing(driver, topic):
    def refuse(batch):
        raise RuntimeError("cannot schedule new futures after shutdown")

    driver.listen(Target(topic, "a"), 1, None).start(refuse)
    driver.send(Target(topic), {}, {"n": 1})
    inbox = Inbox()

    driver.listen(Target(topic, "b"), 1, None).start(inbox)

    assert inbox.wait_for(1)[0].message == {"n": 1}


def test_a_failure_beside_a_shutdown_is_answered_and_the_listener_goes_on(driver, topic):
    taken = []

    def refuse_once(batch):
        taken.extend(batch)
        if len(taken) == 1:
            raise RuntimeError("can't start new thread")

    driver.listen(Target(topic, "a"), 1, None).start(refuse_once)

    with pytest.raises(Exception, match="can't start new thread"):
        driver.send(Target(topic), {}, {"n": 1}, wait_for_reply=True, timeout=WAIT)
    driver.send(Target(topic), {}, {"n": 2})

    assert taken[1].message == {"n": 2}


def test_a_requeued_message_comes_back(driver, topic):
    inbox = Inbox()
    driver.listen(Target(topic, "a"), 1, None).start(inbox)
    driver.send(Target(topic), {}, {"n": 1})

    inbox.wait_for(1)[0].requeue()

    assert [m.message for m in inbox.wait_for(2)] == [{"n": 1}, {"n": 1}]


def test_a_full_queue_without_a_listener_tells_the_sender(driver, topic, monkeypatch):
    monkeypatch.setattr(exchanges, "QUEUE_LIMIT", 3)
    for _ in range(3):
        driver.send(Target(topic), {}, {})

    with pytest.raises(oslo_messaging.MessageDeliveryFailure, match="nobody listens"):
        driver.send(Target(topic), {}, {})


def test_at_least_once_without_a_server_is_undeliverable(driver, topic):
    options = oslo_messaging.TransportOptions(at_least_once=True)
    with pytest.raises(oslo_messaging.MessageUndeliverable):
        driver.send(Target(topic), {}, {}, transport_options=options)


def test_heartbeats_keep_a_monitored_call_alive_and_their_absence_ends_it(driver, topic):
    beats = 5

    def work(batch):
        def run():
            for _ in range(beats):
                batch[0].heartbeat()
            batch[0].reply("done")

        threading.Thread(target=run).start()

    driver.listen(Target(topic, "a"), 1, None).start(work)
    assert driver.send(Target(topic), {}, {}, True, WAIT, call_monitor_timeout=WAIT) == "done"

    silent = Inbox()
    driver.listen(Target(topic, "b"), 1, None).start(silent)
    started = time.monotonic()
    with pytest.raises(oslo_messaging.MessagingTimeout):
        driver.send(Target(topic, "b"), {}, {}, True, 3600, call_monitor_timeout=0.05)
    assert silent.messages[0].client_timeout == 0.05
    assert time.monotonic() - started < 3600


def test_an_answer_of_none_is_an_answer(driver, topic):
    driver.listen(Target(topic, "a"), 1, None).start(lambda batch: batch[0].reply(None))
    assert driver.send(Target(topic), {}, {}, True, WAIT) is None


def test_notifications_come_in_batches_and_each_pool_gets_its_own_copy(driver, topic):
    pools = {name: Inbox() for name in ("one", "two")}
    listeners = []
    for name, inbox in pools.items():
        listener = driver.listen_for_notifications([(Target(topic), "info")], name, 5, 1.0)
        listener.start(inbox)
        listeners.append(listener)

    for number in range(10):
        driver.send_notification(Target(f"{topic}.info"), {}, {"n": number}, 2.0)

    for inbox in pools.values():
        assert [m.message["n"] for m in inbox.wait_for(10)] == list(range(10))
    for listener in listeners:
        assert isinstance(listener, base.Listener)
        listener.stop()
        listener.cleanup()


def test_a_forked_child_does_not_see_its_parents_messages(driver, topic):
    driver.send(Target(topic), {}, {"n": 1})
    pid = os.fork()
    if pid == 0:
        inbox = Inbox()
        MemoryDriver(None, None).listen(Target(topic, "a"), 1, None).start(inbox)
        os._exit(len(inbox.messages))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
