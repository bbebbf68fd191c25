"""Every metric: name, kind, labels, who exposes it, what it tells. ``docs/metrics.md`` shows this table.

Limits: labels have few values, whatever runs: container groups, and words of the lists below; never a job's id.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LEDGER, WORKER, GPU = "all", "workers", "workers with NVML"
"""Who exposes it. All: a worker tells of its own group, the control worker of every one."""

SECONDS_BUCKETS = (0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
BYTES_BUCKETS = tuple(float(4**power) for power in range(6, 20))
"""4 KiB to 256 GiB."""

KINDS_OF_TIME = ("useful", "lost", "restoring", "syncing", "silent", "waiting")


@dataclass(frozen=True)
class Metric:
    """One metric; ``help`` is a sentence."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    labels: tuple[str, ...]
    by: str
    help: str


METRICS = {
    metric.name: metric
    for metric in (
        Metric("kelpie_ledger_up", "gauge", (), LEDGER,
               "1 when Redis answered the last look; with 0, what the ledger tells is as old as the age says."),
        Metric("kelpie_ledger_age_seconds", "gauge", (), LEDGER,
               "How long ago what the ledger tells was read; absent before the first time."),
        Metric("kelpie_jobs", "gauge", ("group", "status"), LEDGER,
               "Jobs by status: `pending`, `delayed` (the pause before a retry), `running`, and of the records that"
               " are kept `completed`, `failed`, `canceled`."),
        Metric("kelpie_queue_age_seconds", "gauge", ("group",), LEDGER,
               "How long the oldest pending job has waited; 0 without one."),
        Metric("kelpie_workers", "gauge", ("group",), LEDGER, "Workers that were heard of lately."),
        Metric("kelpie_attempts_total", "counter", ("group", "outcome", "reason"), LEDGER,
               "Attempts that ended, by the words of [lifecycle](lifecycle.md)."),
        Metric("kelpie_job_seconds_total", "counter", ("group", "kind"), LEDGER,
               "Where the time went: `useful`, `lost`, `restoring`, `syncing`, `silent` of attempts, `waiting` of jobs;"
               " see [goodput](#goodput)."),
        Metric("kelpie_scaler_decisions_total", "counter", ("group", "action"), LEDGER,
               "Looks of the scaler by what was decided: `nothing`, `start`, `stop`, `set_replicas`, `drain`,"
               " `undrain`, or `error`, `suspended`."),
        Metric("kelpie_scaler_desired_replicas", "gauge", ("group",), LEDGER,
               "Nodes that the scaler wants; absent where nothing is scaled."),
        Metric("kelpie_scaler_running_replicas", "gauge", ("group",), LEDGER,
               "Nodes that ran at its last look, by SaladCloud."),
        Metric("kelpie_slots", "gauge", (), WORKER, "Commands that this worker runs at once."),
        Metric("kelpie_running_attempts", "gauge", (), WORKER,
               "Attempts in this worker's process, those that only upload included."),
        Metric("kelpie_transfer_bytes_total", "counter", ("direction", "stage"), WORKER,
               "Bytes `down` in the stage `restore`, and `up` in `commit` and `outputs`."),
        Metric("kelpie_transfer_seconds_total", "counter", ("direction", "stage"), WORKER,
               "How long these took, those that moved nothing left out."),
        Metric("kelpie_commit_seconds", "histogram", (), WORKER,
               "How long a checkpoint took, from the look at the disk until it was durable."),
        Metric("kelpie_commit_sent_bytes", "histogram", (), WORKER, "What of a checkpoint was new, and was sent."),
        Metric("kelpie_lease_renewals_total", "counter", ("result",), WORKER,
               "Heartbeats: `ok`, `failed` (Redis did not answer), `lost` (another attempt owns the job)."),
        Metric("kelpie_lease_renewal_seconds", "histogram", (), WORKER, "How long Redis took to answer a heartbeat."),
        Metric("kelpie_gpu_utilization_ratio", "gauge", ("gpu",), GPU,
               "Part of the last moment in which a kernel ran on the GPU, 0 to 1; `gpu` is its number."),
        Metric("kelpie_gpu_memory_used_bytes", "gauge", ("gpu",), GPU, "Memory of the GPU that is in use."),
        Metric("kelpie_gpu_memory_total_bytes", "gauge", ("gpu",), GPU, "Memory of the GPU."),
    )
}  # fmt: skip
