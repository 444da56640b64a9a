"""``syntheocc occupancy train | predict | eval``: the perception models, from images to occupancy; and ``build``.

    syntheocc occupancy build --dataroot DATA --output-dir LABELS
    syntheocc occupancy train sparseocc --preset small --dataroot DATA --output-dir MODEL
    syntheocc occupancy predict --weights MODEL --dataroot DATA --output-dir PREDICTIONS
    syntheocc occupancy eval --weights MODEL --dataroot DATA --output-dir PREDICTIONS

`build` makes labels from sweeps (`commands.build`). The others are the same programs as
``python -m syntheocc.occupancy.perception.train | predict | evaluate``. All run under torchrun too:
``torchrun --nproc_per_node 8 -m syntheocc.commands occupancy train sparseocc ...``.
"""

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

_PROGRAM = "syntheocc occupancy"
_USAGE = """usage: syntheocc occupancy {build,train,predict,eval,submit,check-submission,export} ...

  build         dense labels from lidar sweeps, boxes and point classes
  train MODEL   train a perception model on labelled frames
  predict       occupancy of frames, one <token>.npz each
  eval          predict, and score against the labels
  submit        predictions packed for SemanticKITTI's benchmark; check-submission looks at such a zip
  export        OccDepth as an ONNX file

`syntheocc occupancy predict --help` lists the flags of a job."""


@dataclass(kw_only=True)
class OccupancyCommands:
    """Labels from sweeps; train perception models, predict and score: build | train | predict | eval."""


def main(argv: Sequence[str]) -> int:
    """Run a job; returns the exit status.

    Args:
        argv: what follows ``syntheocc occupancy``.
    """
    from syntheocc.commands import exit_status

    if not argv or argv[0] in ("-h", "--help"):
        print(_USAGE)
        return 0 if argv else 2
    try:
        job, config = parse(argv)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return exit_status(job, config)


def parse(argv: Sequence[str]) -> tuple[Callable[[Any], int], Any]:
    """The job of a command line and its settings.

    Raises:
        ValueError: no such job or model; a flag that there is not ends the program with status 2.
    """
    import tyro

    from syntheocc.commands import build, completion, with_help
    from syntheocc.occupancy.perception.settings import EvaluateConfig, PredictConfig

    name, rest = argv[0], list(argv[1:])
    if name == "train":
        model, kind = _model(rest)
        # The published OccDepth programs are told their settings as hydra is, name=value.
        flags = [f"--{text.lstrip('+')}" if re.match(r"\+?[a-z]\w*=", text) else text for text in rest[1:]]
        flags = repeats_joined(kind, flags)
        return _train, tyro.cli(with_help(kind, model=model), prog=f"{_PROGRAM} train {model}", args=flags)
    jobs: dict[str, tuple[Callable[[Any], int], type]] = {
        "build": (build.run, build.BuildConfig),
        "predict": (_predict, PredictConfig),
        "eval": (_evaluate, EvaluateConfig),
        "submit": (completion.submit, completion.SubmitConfig),
        "check-submission": (completion.check, completion.CheckConfig),
        "export": (completion.export, completion.ExportConfig),
    }
    if name not in jobs:
        raise ValueError(f"there is no {name!r}; there are train, {', '.join(jobs)}")
    job, kind = jobs[name]
    return job, tyro.cli(with_help(kind), prog=f"{_PROGRAM} {name}", args=rest)


def repeats_joined(kind: type, argv: Sequence[str]) -> list[str]:
    """Arguments in which a flag that may come several times has all its values at once: tyro keeps the last only.

    Args:
        kind: the settings' dataclass; its fields say `repeated` (`engine.flags.flag`).
        argv: arguments.

    Raises:
        ValueError: such a flag without a value, as a variable of the shell that is not set leaves it.

    Example:
        >>> repeats_joined(TrainConfig, ["--extra-dataroot", "a", "--seed", "1", "--extra-dataroot=b"])
        ['--extra-dataroot', 'a', 'b', '--seed', '1']
    """
    lists = {f.name for f in fields(kind) if f.metadata.get("repeated")}
    parts: list[list[str]] = [[]]  # each begins with its flag
    for text in argv:
        if text.startswith("--"):
            parts.append([])
        parts[-1].append(text)
    joined: dict[str, list[str]] = {}
    for number, part in enumerate(parts):
        flag, _, value = part[0].partition("=") if part else ("", "", "")
        name = flag.removeprefix("--").replace("-", "_")
        if name not in lists:
            joined[f"{number}"] = part
            continue
        values = [value, *part[1:]] if "=" in part[0] else part[1:]
        if not values or "" in values:
            raise ValueError(f"{flag} has no value; give one, or leave the flag out")
        joined.setdefault(name, [flag]).extend(values)
    return [text for part in joined.values() for text in part]


def _model(rest: Sequence[str]) -> tuple[str, type]:
    """The model that is to be trained and its settings."""
    from syntheocc.occupancy.perception.registry import MODELS, model_entry

    name = rest[0] if rest else ""
    if not name or name.startswith("-"):
        raise ValueError(
            f"say which model: {_PROGRAM} train {{{','.join(MODELS)}}} ...; --help after it lists its flags"
        )
    return name, model_entry(name).train_settings


def _train(config: Any) -> int:
    from syntheocc.occupancy.perception.train import exit_status, train

    return exit_status(train(config))


def _predict(config: Any) -> int:
    from syntheocc.occupancy.perception.predict import predict, report

    report(config, predict(config))
    return 0


def _evaluate(config: Any) -> int:
    from syntheocc.occupancy.perception.evaluate import evaluate, report

    report(config, evaluate(config))
    return 0
