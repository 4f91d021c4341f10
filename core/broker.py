"""The Celery application that API, workers, sweeper and Flower share: queues, and every wait on the broker bounded.

The broker is Redis or, by BROKER_URL, RabbitMQ.

A message is only ever a hint (see core/doorbell.py), so none is worth waiting or retrying for.
"""

from typing import Any

from celery import Celery
from kombu import Connection
from kombu.entity import Queue

PUBLISH_TIMEOUT_SECONDS = 0.25
CONSUME_TIMEOUT_SECONDS = 5  # a half-open connection is noticed after this, rather than after 45 s
DEFAULT_QUEUE = "chores"  # what is not a bell: mail, rates, housekeeping


def lane_queue(lane: int) -> Queue:
    """A lane's queue."""
    return queue(f"lane.{lane}")


def queue(name: str) -> Queue:
    """A queue on the default exchange, which needs no binding: a flushed broker takes bells again at once."""
    return Queue(name, routing_key=name)


def celery_app(broker_url: str, lanes: list[int], *, socket_timeout: float = CONSUME_TIMEOUT_SECONDS) -> Celery:
    """A Celery application on the broker; it consumes the queues of `lanes` and the chores."""
    app = Celery("kassa", broker=broker_url, set_as_current=False)
    app.conf.update(
        task_queues=[lane_queue(lane) for lane in lanes] + [queue(DEFAULT_QUEUE)],
        task_default_queue=DEFAULT_QUEUE,
        task_create_missing_queues=False,
        task_serializer="json",
        accept_content=["json"],
        result_backend=None,
        task_ignore_result=True,
        task_acks_late=False,  # a bell that dies with its worker is not missed: the sweeper looks into the database
        worker_prefetch_multiplier=1,
        worker_send_task_events=True,
        worker_hijack_root_logger=False,
        worker_max_tasks_per_child=None,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        task_default_delivery_mode="transient",
        broker_heartbeat=CONSUME_TIMEOUT_SECONDS,
        broker_connection_timeout=min(socket_timeout, 1),
        broker_transport_options=transport_options(broker_url, socket_timeout),
        timezone="UTC",
    )
    return app


def transport_options(broker_url: str, socket_timeout: float) -> dict[str, Any]:
    """How long to wait for a broker, in the words of its client."""
    if is_rabbitmq(broker_url):
        publishing = socket_timeout < CONSUME_TIMEOUT_SECONDS
        return {"read_timeout": socket_timeout, "write_timeout": socket_timeout} if publishing else {}
    return {
        "socket_timeout": socket_timeout,
        "socket_connect_timeout": min(socket_timeout, 1),
        "socket_keepalive": True,
        "health_check_interval": 5,
        "priority_steps": [0],  # one key for each queue, not four
        "global_keyprefix": "kassa:",
    }


def is_rabbitmq(broker_url: str) -> bool:
    """Whether the broker is RabbitMQ, and not Redis."""
    return broker_url.startswith("amqp")


def is_up(broker_url: str) -> bool:
    """Whether the broker answers, within a fraction of a second."""
    options = transport_options(broker_url, PUBLISH_TIMEOUT_SECONDS)
    try:
        with Connection(broker_url, connect_timeout=PUBLISH_TIMEOUT_SECONDS, transport_options=options) as connection:
            connection.connect()
    except Exception:  # whatever it is, there is no broker to talk to
        return False
    return True
