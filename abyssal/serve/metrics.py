"""What the service counts and times, in Prometheus' text format.

Names that vLLM has are vLLM's, so that its dashboards work; ours are ``abyssal:``. Counts of the
engine are read from it when somebody asks; times are taken on the event loop, where the reader
sees the tokens.
"""

import time
from collections.abc import Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from abyssal.engine.engine import Stats
from abyssal.engine.request import Delta

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Seconds; from a tiny model's token to a long answer of a large one.
_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_FIRST_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_ANSWER_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
_LABEL = ("model_name",)


class Metrics:
    """The numbers of one service, in a registry of their own."""

    def __init__(self, model: str):
        self._model = model
        self._stats: Stats | None = None
        self._registry = registry = CollectorRegistry()

        def times(name: str, text: str, buckets: Sequence[float]) -> Histogram:
            whole = Histogram(name, text, _LABEL, buckets=buckets, registry=registry)
            return whole.labels(model)

        self.first_token_s = times(
            "vllm:time_to_first_token_seconds", "From the request to its first token.", _FIRST_S
        )
        self.between_tokens_s = times(
            "vllm:inter_token_latency_seconds", "Between two tokens of an answer.", _TOKEN_S
        )
        self.answer_s = times(
            "vllm:e2e_request_latency_seconds", "From the request to its last token.", _ANSWER_S
        )
        self._ended = Counter(
            "vllm:request_success",
            "Answers that are over, by what ended them.",
            (*_LABEL, "finished_reason"),
            registry=registry,
        )
        self._refused = Counter(
            "abyssal:requests_refused", "Requests answered with 429.", _LABEL, registry=registry
        ).labels(model)
        registry.register(self)

    def text(self, stats: Stats) -> bytes:
        """All of it, with the engine's numbers as they are in stats."""
        self._stats = stats
        return generate_latest(self._registry)

    def refuse(self) -> None:
        """Count a request that found no place."""
        self._refused.inc()

    def end(self, reason: str) -> None:
        """Count an answer that is over."""
        self._ended.labels(self._model, reason).inc()

    def collect(self) -> Iterator[Metric]:
        """The engine's numbers, when the registry asks for them."""
        if self._stats is not None:
            yield from self._gauges(self._stats)
            yield from self._counters(self._stats)
            yield from self._drafts(self._stats)
            yield from self._experts(self._stats)

    def _gauges(self, stats: Stats) -> Iterator[Metric]:
        used = stats.pages_in_use / max(1, stats.pages_total)
        cached = stats.prompt_tokens_cached / max(1, stats.prompt_tokens)
        for name, text, value in (
            ("vllm:num_requests_running", "Answers being written.", stats.requests_running),
            ("vllm:num_requests_waiting", "Answers in the queue.", stats.requests_waiting),
            ("vllm:kv_cache_usage_perc", "Share of the cache's pages in use, 0 to 1.", used),
            ("abyssal:pages_in_use", "Pages of the cache that somebody holds.", stats.pages_in_use),
            ("abyssal:pages_total", "Pages of the cache.", stats.pages_total),
            ("abyssal:prefix_cache_hit_ratio", "Share of prompt tokens found cached.", cached),
            ("abyssal:step_seconds", "The latest step of the engine.", stats.step_s),
            ("abyssal:schedule_seconds", "What of it the scheduler took.", stats.schedule_s),
        ):
            yield self._family(GaugeMetricFamily, name, text, [((), value)])

    def _counters(self, stats: Stats) -> Iterator[Metric]:
        for name, text, value in (
            ("vllm:num_preemptions", "Answers put back into the queue.", stats.preemptions),
            ("vllm:prompt_tokens", "Tokens of prompts.", stats.prompt_tokens),
            ("vllm:generation_tokens", "Tokens written.", stats.generation_tokens),
            ("vllm:prefix_cache_queries", "Prompt tokens looked up.", stats.prompt_tokens),
            ("vllm:prefix_cache_hits", "Prompt tokens found.", stats.prompt_tokens_cached),
            ("abyssal:steps", "Passes of the model.", stats.steps),
        ):
            yield self._family(CounterMetricFamily, name, text, [((), value)])

    def _drafts(self, stats: Stats) -> Iterator[Metric]:
        """Speculation by MTP; the first guess of a pass is position 0."""
        drafted, accepted = stats.drafted, stats.accepted
        name = "vllm:spec_decode_num"
        for end, text, value in (
            ("drafts", "Passes that had guesses to verify.", sum(drafted[:1])),
            ("draft_tokens", "Guesses verified.", sum(drafted)),
            ("accepted_tokens", "Guesses that were right.", sum(accepted)),
        ):
            yield self._family(CounterMetricFamily, f"{name}_{end}", text, [((), value)])
        positions = [((str(i),), count) for i, count in enumerate(accepted)]
        shares = [
            ((str(i),), right / max(1, all_))
            for i, (all_, right) in enumerate(zip(drafted, accepted, strict=True))
        ]
        text = "Guesses that were right, by how far ahead they were."
        found = self._family(
            CounterMetricFamily, f"{name}_accepted_tokens_per_pos", text, positions, ("position",)
        )
        yield found
        text = "Share of guesses that were right, by how far ahead they were."
        name = "abyssal:mtp_acceptance_ratio"
        yield self._family(GaugeMetricFamily, name, text, shares, ("position",))

    def _experts(self, stats: Stats) -> Iterator[Metric]:
        """How much each routed expert has done; layers count MoE layers from 0."""
        loads = [
            ((str(layer), str(expert)), count)
            for layer, row in enumerate(stats.expert_load)
            for expert, count in enumerate(row)
        ]
        text = "Tokens an expert was chosen for."
        labels = ("layer", "expert")
        yield self._family(CounterMetricFamily, "abyssal:expert_load", text, loads, labels)
        peaks = [
            ((str(layer),), max(row) * len(row) / max(1, sum(row)))
            for layer, row in enumerate(stats.expert_load)
        ]
        text = "The busiest expert's load over the mean of its layer."
        name = "abyssal:expert_load_max_over_mean"
        yield self._family(GaugeMetricFamily, name, text, peaks, ("layer",))

    def _family(
        self,
        kind: type[GaugeMetricFamily] | type[CounterMetricFamily],
        name: str,
        text: str,
        values: Iterable[tuple[tuple[str, ...], float]],
        labels: tuple[str, ...] = (),
    ) -> Metric:
        family = kind(name, text, labels=(*_LABEL, *labels))
        for names, value in values:
            family.add_metric((self._model, *names), value)
        return family


class Stopwatch:
    """The times of one call's answers, as its reader sees them."""

    def __init__(self, metrics: Metrics):
        self._metrics = metrics
        self._began_s = time.perf_counter()
        self._first_s: dict[int, float] = {}  # when each answer's first token came
        self._seen_s: dict[int, float] = {}  # ... and its latest
        self._num_ended = 0

    def note(self, deltas: Sequence[Delta]) -> None:
        """Take in what was just read."""
        now = time.perf_counter()
        metrics, seen = self._metrics, self._seen_s
        for delta in deltas:
            if delta.token is not None:
                before = seen.get(delta.request_id)
                if before is None:
                    metrics.first_token_s.observe(now - self._began_s)
                    self._first_s[delta.request_id] = now
                else:
                    metrics.between_tokens_s.observe(now - before)
                seen[delta.request_id] = now
            if delta.finish_reason is not None:
                metrics.answer_s.observe(now - self._began_s)
                metrics.end(delta.finish_reason)
                self._num_ended += 1

    def times_s(self, request_id: int) -> tuple[float | None, float | None]:
        """When the first and the latest token of an answer came, since the call began."""
        if request_id not in self._seen_s:
            return None, None
        first, latest = self._first_s[request_id], self._seen_s[request_id]
        return first - self._began_s, latest - self._began_s

    def stop(self, num_answers: int) -> None:
        """The call is over; answers that have not ended were given up."""
        for _ in range(num_answers - self._num_ended):
            self._metrics.end("abort")
