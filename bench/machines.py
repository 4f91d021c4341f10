"""Two worker machines for real: two network namespaces, each with its own workers, one of them cut off under load.

PostgreSQL, Redis, the API and the sweeper stay where they are; the namespaces reach PostgreSQL and the broker over a
bridge, by way of a small forwarder, since the bundled servers listen on the loopback only. A link that is taken down
drops packets silently, as a pulled cable does. Needs root, `ip`, and for RabbitMQ its Debian package.
"""

import contextlib
import itertools
import json
import os
import select
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from bench.paced import paced
from bench.stack import Bench, load, start, wait_until_applied
from cli.servers import LOOPBACK, CannotStart, free_port
from cli.stack import Process, procfile, stop_group
from core import db, lanes
from core.broker import is_up
from core.reconcile import violations

BRIDGE, HERE = "kassa0", "10.77.0.1"
MACHINES = ("kassa-a", "kassa-b")
RATE, SECONDS, CUT_AT, HEAL_AT = 400, 24, 8, 16
LOOK_SECONDS = 0.05
RABBITMQ = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
RABBITMQ_READY_SECONDS_MAX = 60


def run(broker: str) -> str:
    """Load for 24 s, one machine's link cut from the 8th to the 16th. Returns what happened, in words."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        raise CannotStart("two machines need root and `ip` (Debian: apt-get install iproute2).")
    with contextlib.ExitStack() as stack:
        stack.enter_context(network())
        bench = start(SECONDS, 2_000, "bench-machines")
        stack.callback(bench.stack.stop)
        stack.callback(bench.engine.dispose)
        broker_url = bench.stack.environment["REDIS_URL"]
        if broker == "rabbitmq":
            broker_url = stack.enter_context(rabbitmq(bench.stack.data_dir))
            restart(bench, {"BROKER_URL": broker_url})
        load(bench)
        stop_group(bench.stack.processes["worker"].running.pid, "worker")  # type: ignore[union-attr]
        for machine in MACHINES:
            stack.enter_context(workers(bench, machine, broker_url))
        return measured(bench, broker)


def measured(bench: Bench, broker: str) -> str:
    """Cut and heal under load, and say what it did."""
    stalls: list[tuple[float, float]] = []
    over = threading.Event()
    watcher = threading.Thread(target=watch, args=(bench, over, stalls, time.monotonic()))
    cutter = threading.Thread(target=cut_and_heal)
    users = [line.split() for line in (bench.stack.data_dir / "users.txt").read_text().splitlines()]
    time.sleep(3)  # until both machines consume

    def transfer(number: int) -> tuple[str, dict[str, str], bytes]:
        receiver = users[(number * 31 + 1) % len(users)][1]
        body = json.dumps({"type": "transfer", "amount": 1, "to_account_id": receiver}).encode()
        return users[number * 31 % len(users)][0], {"Idempotency-Key": f"machines-{number}"}, body

    watcher.start()
    cutter.start()
    took = paced(bench, RATE, SECONDS, transfer)
    wait_until_applied(bench)
    over.set()
    watcher.join()
    cutter.join()
    with bench.engine.connect() as connection:
        query = "SELECT count(*) FROM operations WHERE idempotency_key LIKE 'machines-%%' AND status = 'applied'"
        applied = connection.exec_driver_sql(query).scalar_one()
    if broken := violations(bench.engine):
        raise CannotStart(f"the ledger does not reconcile: {broken}")
    if applied != len(took):
        raise CannotStart(f"{len(took)} operations were acknowledged, and {applied} applied")
    longest = max((seconds for _, seconds in stalls), default=0.0)
    return (
        f"{broker}: {len(took)} operations acknowledged at {RATE}/s and applied, none lost or doubled; "
        f"the longest that a lane stood still was {longest:.2f} s; the ledger reconciles"
    )


def watch(bench: Bench, over: threading.Event, stalls: list[tuple[float, float]], started: float) -> None:
    """Note how long each operation stays at the head of its lane."""
    since: dict[str, float] = {}
    with db.autocommit(bench.engine).connect() as connection:
        while not over.wait(LOOK_SECONDS):
            now = time.monotonic()
            heads = set(lanes.heads(connection).values())
            since = {head: since.get(head, now) for head in heads}
            stalls += [(now - started, now - first) for first in since.values()]


def cut_and_heal() -> None:
    """Take the first machine's link down, and up again."""
    time.sleep(CUT_AT)
    ip(f"link set {MACHINES[0]} down")
    print(f"{MACHINES[0]} is cut off", flush=True)
    time.sleep(HEAL_AT - CUT_AT)
    ip(f"link set {MACHINES[0]} up")
    print(f"{MACHINES[0]} is back", flush=True)


def ip(command: str) -> None:
    """Run ip."""
    subprocess.run(["ip", *command.split()], check=True, capture_output=True)


@contextlib.contextmanager
def network() -> Iterator[None]:
    """A bridge, and a namespace for each machine with a link to it."""
    try:
        ip(f"link add {BRIDGE} type bridge")
        ip(f"addr add {HERE}/24 dev {BRIDGE}")
        ip(f"link set {BRIDGE} up")
        for number, machine in enumerate(MACHINES, start=2):
            ip(f"netns add {machine}")
            ip(f"link add {machine} type veth peer name eth0 netns {machine}")
            ip(f"link set {machine} master {BRIDGE} up")
            ip(f"-n {machine} addr add 10.77.0.{number}/24 dev eth0")
            ip(f"-n {machine} link set eth0 up")
            ip(f"-n {machine} link set lo up")
        yield
    finally:
        for machine in MACHINES:
            subprocess.run(["ip", "netns", "delete", machine], capture_output=True)
            subprocess.run(["ip", "link", "delete", machine], capture_output=True)
        subprocess.run(["ip", "link", "delete", BRIDGE], capture_output=True)


@contextlib.contextmanager
def workers(bench: Bench, machine: str, broker_url: str) -> Iterator[None]:
    """A machine's workers, with the addresses by which it reaches the servers."""
    environment = dict(bench.stack.environment)
    for name, url in (("DATABASE_URL", environment["DATABASE_URL"]), ("REDIS_URL", environment["REDIS_URL"])):
        environment[name] = over_the_bridge(url)
    if broker_url != bench.stack.environment["REDIS_URL"]:
        environment["BROKER_URL"] = over_the_bridge(broker_url)
    log = bench.stack.data_dir / "log" / f"{machine}.log"
    command = f"exec ip netns exec {machine} {procfile()['worker']} --hostname {machine}@%h"
    process = Process(machine, ["/bin/sh", "-c", command], environment, log)
    process.start()
    try:
        yield
    finally:
        stop_group(process.running.pid, machine)  # type: ignore[union-attr]


def over_the_bridge(url: str) -> str:
    """The URL of a loopback server as the machines reach it."""
    port = urlsplit(url).port
    assert port is not None
    return url.replace(f"{LOOPBACK}:{port}", f"{HERE}:{forward(port)}")


def forward(port: int, known: dict[int, int] = {}) -> int:  # noqa: B006  # one forwarder for each port
    """Listen on the bridge for a loopback port. Returns the port there."""
    if port not in known:
        listener = socket.create_server((HERE, 0))
        known[port] = listener.getsockname()[1]
        threading.Thread(target=accept_all, args=(listener, port), daemon=True).start()
    return known[port]


def accept_all(listener: socket.socket, port: int) -> None:
    """Join every connection to one of the loopback port."""
    while True:
        client, _ = listener.accept()
        server = socket.create_connection((LOOPBACK, port))
        threading.Thread(target=pump, args=(client, server), daemon=True).start()


def pump(one: socket.socket, other: socket.socket) -> None:
    """Carry bytes both ways until either side ends."""
    to = {one: other, other: one}
    with one, other, contextlib.suppress(OSError):
        for sock in to:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            for ready in select.select(list(to), [], [])[0]:
                data = ready.recv(65536)
                if not data:
                    return
                to[ready].sendall(data)


@contextlib.contextmanager
def rabbitmq(data_dir: Path) -> Iterator[str]:
    """A RabbitMQ of our own. Yields its URL."""
    if not RABBITMQ.exists():
        raise CannotStart("RabbitMQ is missing: install it (Debian: apt-get install rabbitmq-server).")
    home, port = data_dir / "rabbitmq", free_port(0)
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    environment = os.environ | {
        "HOME": str(home),
        "RABBITMQ_NODENAME": "kassa@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": LOOPBACK,
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(free_port(0)),
        "RABBITMQ_MNESIA_BASE": str(home / "mnesia"),
        "RABBITMQ_LOG_BASE": str(home / "log"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "plugins"),
        "RABBITMQ_PID_FILE": str(home / "pid"),
    }
    process = Process("rabbitmq", [str(RABBITMQ)], environment, data_dir / "log" / "rabbitmq.log")
    process.start()
    url = f"amqp://guest:guest@{LOOPBACK}:{port}//"
    try:
        for _ in itertools.takewhile(lambda _: not is_up(url), range(RABBITMQ_READY_SECONDS_MAX)):
            time.sleep(1)
        if not is_up(url):
            raise CannotStart(f"RabbitMQ does not answer: {process.last_words()}")
        yield url
    finally:
        stop_group(process.running.pid, "rabbitmq")  # type: ignore[union-attr]


def restart(bench: Bench, changes: dict[str, str]) -> None:
    """Start the processes again with other settings."""
    bench.stack.environment |= changes
    for name in procfile():
        process = bench.stack.processes[name]
        stop_group(process.running.pid, name)  # type: ignore[union-attr]
        process.start()
    time.sleep(8)
