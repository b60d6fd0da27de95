"""`/metrics` of the studio, as Prometheus reads it: requests, seconds, forwards, who waits, jobs, memory."""

from collections import Counter as Tally
from collections.abc import Iterable

import torch
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from clip_anatomy.studio.jobs import Jobs
from clip_anatomy.studio.session import Session

__all__ = ["Metrics"]

SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)  # bounds of the histogram


class Metrics(Collector):
    """Counts of requests, and what the session and the jobs say of themselves when they are asked."""

    def __init__(self, session: Session, jobs: Jobs) -> None:
        """Begin to count.

        Args:
            session: whose model is asked.
            jobs: its long work.
        """
        self._session, self._jobs, self._registry = session, jobs, CollectorRegistry()
        self._requests = Counter(
            "clip_anatomy_requests", "Answered requests.", ["route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "clip_anatomy_request_seconds",
            "From request to answer.",
            ["route"],
            buckets=SECONDS,
            registry=self._registry,
        )
        for collect in (ProcessCollector, PlatformCollector):  # memory, processor time, open files; versions
            collect(registry=self._registry)
        self._registry.register(self)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count a request by the path of its route, never by what was asked for."""
        self._requests.labels(route, status).inc()
        self._seconds.labels(route).observe(seconds)

    def collect(self) -> Iterable[Metric]:
        """Yield what is read at the moment somebody asks."""
        encoder, device = self._session.encoder, self._session.clip.device
        yield CounterMetricFamily("clip_anatomy_forwards", "Forwards that split pictures.", value=encoder.forwards)
        yield CounterMetricFamily("clip_anatomy_pictures", "Pictures split in them.", value=encoder.pictures)
        yield GaugeMetricFamily(
            "clip_anatomy_waiting", "Requests that have the model or wait for it.", value=self._session.waiting
        )
        held = len(self._session.pictures)
        yield GaugeMetricFamily("clip_anatomy_pictures_held", "Pictures that are kept in memory.", value=held)
        states = GaugeMetricFamily("clip_anatomy_jobs", "Long work by its state.", labels=["state"])
        for state, count in Tally(job.state for job in self._jobs.all()).items():
            states.add_metric([state], count)
        yield states
        if device.type == "cuda":
            used = torch.cuda.memory_allocated(device)
            yield GaugeMetricFamily(
                "clip_anatomy_device_memory_bytes", "Memory of the GPU that tensors take.", value=used
            )

    def text(self) -> bytes:
        """Return everything in Prometheus's text format."""
        return generate_latest(self._registry)
