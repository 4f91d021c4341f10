"""Whether the service lives, whether it is ready, and what it counts."""

import os
from collections.abc import Iterator

import falcon
import redis
import sqlalchemy as sa
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from api.dependencies import Dependencies
from api.errors import answer, problem
from api.responses import send
from core import lanes
from core.broker import is_rabbitmq, is_up

LANES = f"""
SELECT lanes.id AS lane, (SELECT count(*) FROM queue WHERE lane = lanes.id) AS depth,
       coalesce(extract(epoch FROM clock_timestamp() - head.created_at), 0) AS oldest_seconds
  FROM lanes LEFT JOIN ({lanes.WAITING_SINCE}) AS head ON head.lane = lanes.id ORDER BY lanes.id"""
OLDEST_PENDING = f"SELECT extract(epoch FROM clock_timestamp() - min(created_at)) FROM ({lanes.WAITING_SINCE}) AS heads"


class Health:
    """`/health/live`, `/health/ready` and `/metrics`"""

    def __init__(self, dependencies: Dependencies) -> None:
        self.dependencies = dependencies

    def on_get_live(self, _request: falcon.Request, response: falcon.Response) -> None:
        """The process answers."""
        send(response, {"status": "alive"})

    def on_get_ready(self, _request: falcon.Request, response: falcon.Response) -> None:
        """Operations can be accepted: that takes the database alone. A dead broker is told, and no reason to stop."""
        broker = "up" if self._broker_answers() else "down"
        try:
            with self.dependencies.reader.connect() as connection:
                oldest = connection.execute(sa.text(OLDEST_PENDING)).scalar_one()
        except sa.exc.SQLAlchemyError:
            answer(response, problem("not_ready", "The database is away.", database="down", broker=broker))
            return
        seconds = round(max(0.0, float(oldest or 0)), 3)
        ready = {"status": "ready", "database": "up", "broker": broker, "oldest_pending_seconds": seconds}
        send(response, ready)

    def _broker_answers(self) -> bool:
        try:
            return bool(self.dependencies.broker.ping()) and (
                not is_rabbitmq(self.dependencies.settings.broker) or is_up(self.dependencies.settings.broker)
            )
        except redis.RedisError:
            return False

    def on_get_metrics(self, _request: falcon.Request, response: falcon.Response) -> None:
        """What the API's processes count together, and the state of the lanes as the database knows it now."""
        registry = REGISTRY
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        depths = CollectorRegistry()
        depths.register(Lanes(self.dependencies.reader))
        response.content_type = CONTENT_TYPE_LATEST
        response.data = generate_latest(registry) + generate_latest(depths)


class Lanes(Collector):
    """Depth and age of every lane, read from the database at the moment of the scrape."""

    def __init__(self, reader: sa.Engine) -> None:
        self.reader = reader

    def collect(self) -> Iterator[Metric]:
        """The two gauges."""
        depth = GaugeMetricFamily("kassa_lane_pending_operations", "Accepted and not finished.", labels=["lane"])
        age = GaugeMetricFamily(
            "kassa_lane_oldest_pending_seconds", "Age of the one whose turn is next.", labels=["lane"]
        )
        with self.reader.connect() as connection:
            for row in connection.execute(sa.text(LANES)):
                depth.add_metric([str(row.lane)], row.depth)
                age.add_metric([str(row.lane)], max(0.0, float(row.oldest_seconds)))
        yield depth
        yield age
