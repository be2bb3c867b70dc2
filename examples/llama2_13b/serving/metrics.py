"""Figures for Prometheus, at /metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from examples.llama2_13b.generate.engine import EngineStats
from examples.llama2_13b.generate.request import Delta
from examples.llama2_13b.serving.news import News

# Seconds: from a small model's step on an idle machine to a long prompt before a full queue.
FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100)
BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
GAUGES = {
    "running": "requests in the batch",
    "waiting": "requests that wait for a place in the batch",
    "free_blocks": "blocks of the cache that no request holds",
    "total_blocks": "blocks of the cache",
}
COUNTERS = {
    "steps": "runs of the model",
    "preemptions": "times that a running request lost its blocks",
    "prefix_hit_tokens": "tokens whose keys and values were in the cache",
    "prompt_tokens": "tokens of prompts",
    "generated_tokens": "tokens of answers",
}


class Metrics:
    """Counts of one server; those of the engine are read when somebody asks."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "fusionkit_requests", "HTTP requests for answers", ("path", "outcome"), registry=self._registry
        )
        self._first = Histogram(
            "fusionkit_time_to_first_token_seconds",
            "from a request's arrival to its first token",
            buckets=FIRST,
            registry=self._registry,
        )
        self._between = Histogram(
            "fusionkit_time_between_tokens_seconds",
            "between a request's tokens after the first",
            buckets=BETWEEN,
            registry=self._registry,
        )

    def count(self, path: str, outcome: str) -> None:
        self._requests.labels(path, outcome).inc()

    def saw(self, news: News, delta: Delta, now: float) -> None:
        """A request's tokens have come, in seconds of `time.perf_counter`. Those of one step share its time."""
        if not delta.tokens:
            return
        place = news.places[delta.request_id]
        last = news.last[place]
        if last is None:
            self._first.observe(now - news.started)
        else:
            for _ in delta.tokens:
                self._between.observe((now - last) / len(delta.tokens))
        news.last[place] = now

    def watch(self, stats: Callable[[], EngineStats]) -> None:
        self._registry.register(_EngineCollector(stats))

    def page(self) -> bytes:
        """In Prometheus' text format."""
        return bytes(generate_latest(self._registry))


class _EngineCollector:
    def __init__(self, stats: Callable[[], EngineStats]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        for name, help in GAUGES.items():
            yield GaugeMetricFamily(f"fusionkit_engine_{name}", help, value=getattr(stats, name))
        for name, help in COUNTERS.items():
            yield CounterMetricFamily(f"fusionkit_engine_{name}", help, value=getattr(stats, name))
