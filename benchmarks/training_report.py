"""What benchmarks/training.py prints: seconds, memory and phases of every variant, beside the targets."""

from typing import Any

TARGET_SECONDS, TARGET_PEAK_GB, TARGET_CHECKPOINT_GB = 0.16, 20.0, 14.0
TARGET_RENDER_SHARE, TARGET_SCALING = 0.01, 0.95
PHASES = ("render", "condition", "encode", "forward", "backward", "optimizer")


def print_row(row: dict[str, Any]) -> None:
    print(f"{row['variant']}: {row['step_s']:.4f} s a step, peak {row['peak_gb']:.2f} GB", flush=True)


def print_report(report: dict[str, Any]) -> None:
    print(f"\n{report['chip']}, torch {report['torch']}, {report['settings']}")
    print(f"{'':30}{'step':>9}{'best':>9}{'peak':>9}{'reserved':>10}{'TFLOP/s':>9}{'first':>8}"
          + "".join(f"{name:>11}" for name in PHASES) + f"{'render*':>9}{'loss':>9}{'gradient':>9}")  # fmt: skip
    for row in report["rows"]:
        if "scaling" in row:
            continue
        flops = row.get("tflop", {}).get("total", float("nan"))
        gradient = max(row.get("gradient_differences", {"": float("nan")}).values())
        print(
            f"{row['variant']:30}{row['step_s']:8.4f}s{row['best_s']:8.4f}s{row['peak_gb']:7.2f}GB"
            f"{row['reserved_gb']:8.2f}GB{flops / row['step_s']:9.0f}{row['first_step_s']:7.1f}s"
            + "".join(f"{row['phases_ms'][name]:9.2f}ms" for name in PHASES)
            + f"{row['render_alone_ms']:7.2f}ms{row.get('loss_difference', float('nan')):9.1e}{gradient:9.1e}"
        )
    for row in report["rows"]:
        if "scaling" in row:
            print(
                f"{row['variant']:30}{row['step_s']:8.4f}s, alone {row['alone_s']:.4f}s: {100 * row['scaling']:.1f} % "
                f"of the GPUs' throughput (target {100 * TARGET_SCALING:.0f}), peak {row['peak_gb']:.2f} GB"
            )
            continue
        print(f"{row['variant']}: the CPU waits {len(row['waits'])} times a step {sorted(set(row['waits']))}")
        if "profile" in row:
            kinds = sorted(row["profile"]["ms_a_step"].items(), key=lambda item: -item[1])
            print(f"{row['variant']}, ms of kernels: " + ", ".join(f"{kind} {value:.1f}" for kind, value in kinds))
    print(f"targets: {TARGET_SECONDS} s, {TARGET_PEAK_GB:.0f} GB ({TARGET_CHECKPOINT_GB:.0f} GB with checkpointing), "
          f"render {100 * TARGET_RENDER_SHARE:.0f} %. render*: alone, without the rest of the step")  # fmt: skip
    for name, message in report["failures"].items():
        print(f"{name} failed: {message.splitlines()[-1] if message else message}")
