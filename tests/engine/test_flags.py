import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from syntheocc.engine.flags import flag, from_environment, parse_flags
from syntheocc.engine.ranks import Ranks


@dataclass(kw_only=True)
class Job:
    seed: int = flag(0, "seed, 100% the same")
    cfg_scale: float = flag(7.5, "guidance")
    use_cbgs: bool = flag(False, "balance")
    mixed_precision: Literal["no", "fp16", "bf16"] = flag("no", "precision")
    variant: str | None = flag(None, "weights")
    planes: tuple[int, ...] = flag((256, 96), "planes", aliases=("layers", "num-layers"))
    save: Path = flag(Path("out"), "folder", env=("$SAVE_IMG_DIR", "./ckp/$EXP_NAME/samples"))

    def __post_init__(self):
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")


def parse(*argv, **environ):
    return parse_flags(Job, argv, environ)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [(["--use_cbgs"], True), (["--use_cbgs=True"], True), (["--use_cbgs", "true"], True)]
    + [(["--use_cbgs=False"], False), (["--use_cbgs=0", "--seed=3"], False), ([], False)],
)
def test_switches_take_both_published_spellings(argv, expected):
    assert parse(*argv).use_cbgs is expected


def test_types_come_from_the_dataclass():
    job = parse("--seed=5", "--cfg_scale=7", "--mixed_precision=fp16", "--variant=fp16", "--planes=96", "--save", "x")
    assert job == Job(seed=5, cfg_scale=7.0, mixed_precision="fp16", variant="fp16", planes=(96,), save=Path("x"))


def test_a_flag_has_other_names():
    assert parse("--layers=3,4").planes == (3, 4) and parse("--num-layers=5").planes == (5,)


def test_a_flag_wins_over_the_environment_and_that_over_the_default():
    assert parse().save == Path("out")
    assert parse(EXP_NAME="run").save == Path("ckp/run/samples")
    assert parse(EXP_NAME="run", SAVE_IMG_DIR="vis").save == Path("vis")
    assert parse("--save=z", SAVE_IMG_DIR="vis").save == Path("z")
    assert from_environment(("$A/$B",), {"A": "1", "B": ""}) is None, "an empty variable counts as unset"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--sed=5"], "unrecognized arguments: --sed=5; did you mean --seed"),
        (["--completely", "other"], "unrecognized arguments: --completely other (--help"),
        (["--mixed=fp16"], "unrecognized arguments"),  # no abbreviations: a later flag could change their meaning
        (["--use_cbgs=maybe"], "True or False"),
        (["--mixed_precision=fp8"], "no, fp16, bf16"),
        (["--planes=a"], "--planes"),
        (["--seed=-1"], "must not be negative"),
    ],
)
def test_bad_flags_end_with_one_line(argv, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(*argv)
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_help_lists_every_flag(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    text = capsys.readouterr().out
    assert all(f"--{field.name}" in text for field in dataclasses.fields(Job)) and "100%" in text


def test_help_shows_defaults_and_names_ignored_flags_last(capsys):
    @dataclass(kw_only=True)
    class Published(Job):
        report_to: str | None = flag(None, "only training uses it", ignored=True)

    with pytest.raises(SystemExit):
        parse_flags(Published, ["--help"], {"EXP_NAME": "run"}, "one\n\n    two")
    text = capsys.readouterr().out
    assert "one\n\n    two\n" in text, "the description keeps its lines"
    assert "(default: ckp/run/samples)" in text and "(default: 256,96)" in text and "None" not in text
    assert text.strip().splitlines()[-1].endswith("work: --report_to")
    assert parse_flags(Published, ["--report_to=wandb"], {}).report_to == "wandb"


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_ranks_share_without_loss_or_padding(world):
    items = list(range(5))
    shares = [Ranks(rank, world).share(items) for rank in range(world)]
    assert sorted(sum(shares, [])) == items


def test_ranks_read_what_launchers_set():
    assert Ranks.from_environment({}) == Ranks(0, 1, 0)
    assert Ranks.from_environment({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}) == Ranks(3, 4, 1)
    with pytest.raises(ValueError, match="WORLD_SIZE=2"):
        Ranks.from_environment({"RANK": "2", "WORLD_SIZE": "2"})
