"""Timers of benchmarks/sparseocc.py: calls, modules, memory, streams of batches."""

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn


class Bench:
    """The device, the settings and what was measured so far."""

    def __init__(self, args: argparse.Namespace):
        self.device = torch.device(args.device)
        self.args = args
        self.rows: list[dict[str, Any]] = []
        self.repeats = 1 if args.smoke else args.repeats

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def milliseconds(self, call: Callable[[], Any], repeats: int | None = None) -> float:
        """Of a call, from many of them: the median of five groups."""
        repeats = self.repeats if repeats is None or self.args.smoke else repeats
        for _ in range(0 if self.args.smoke else 5):
            call()
        groups = []
        for _ in range(1 if self.args.smoke else 5):
            self.synchronize()
            started = time.perf_counter()
            for _ in range(repeats):
                call()
            self.synchronize()
            groups.append(1e3 * (time.perf_counter() - started) / repeats)
        return statistics.median(groups)

    def row(self, part: str, what: str, **figures: Any) -> None:
        """Keep and print a line."""
        self.rows.append({"part": part, "what": what, **figures})
        text = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in figures.items())
        print(f"{part:10s} {what:52s} {text}", flush=True)


def peak_gb(bench: Bench, call: Callable[[], Any]) -> float | None:
    if bench.device.type != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 1e9


def rate_of(batches: Iterable[Any]) -> float:
    """Batches a second after the first fifth, in which workers start and kernels are compiled."""
    stamps = []
    for _ in batches:
        stamps.append(time.perf_counter())
    skip = max(1, len(stamps) // 5)
    return (len(stamps) - skip) / (stamps[-1] - stamps[skip - 1])


def part_times(bench: Bench, watched: Mapping[str, nn.Module], step: Callable[[], Any]) -> dict[str, float]:
    """Milliseconds of one `step` inside each of the modules."""
    marks: list[tuple[str, Any, Any]] = []
    starts: dict[str, Any] = {}

    def mark() -> Any:
        if bench.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            return event
        return time.perf_counter()

    hooks = []
    for name, module in watched.items():
        hooks.append(module.register_forward_pre_hook(lambda *_, n=name: starts.__setitem__(n, mark())))
        hooks.append(module.register_forward_hook(lambda *_, n=name: marks.append((n, starts[n], mark()))))
    runs = bench.repeats
    for _ in range(runs):
        step()
    bench.synchronize()
    for hook in hooks:
        hook.remove()
    spent: dict[str, float] = {}
    for name, start, stop in marks:
        passed = start.elapsed_time(stop) if bench.device.type == "cuda" else 1e3 * (stop - start)
        spent[name] = spent.get(name, 0.0) + passed / runs
    return spent
