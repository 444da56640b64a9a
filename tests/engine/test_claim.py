import os
import signal
import subprocess
import sys
import textwrap

import pytest
from line_problem import LineConfig, train

from syntheocc.engine.claim import LOCK_FILE, claimed

# Another process that has the folder, with a forked child of its own, as a job with readers.
HOLDER = """
    import os, sys, time
    from syntheocc.engine.claim import claimed
    with claimed(sys.argv[1]):
        child = os.fork()
        if child:
            print(child, flush=True)
        time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    program = [sys.executable, "-c", textwrap.dedent(HOLDER), str(tmp_path / "out")]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        child = int(process.stdout.readline())
        yield process
        process.kill()
        os.kill(child, signal.SIGKILL)


def test_two_jobs_do_not_write_into_one_folder(tmp_path, holder):
    config = LineConfig(output_dir=tmp_path / "out", max_train_steps=2, global_batch_size=2)
    half_written = tmp_path / "out" / ".checkpoint-5.0123abcd.tmp"  # the other job is saving
    half_written.mkdir()
    with pytest.raises(ValueError, match=f"another job writes there .process {holder.pid} on "):
        train(config)
    assert half_written.is_dir()
    # kill -9: the successor may start at once, although a reader of the killed job still runs
    holder.kill()
    holder.wait()
    assert train(config)[0].step == 2
    assert not half_written.exists() and not (tmp_path / "out" / LOCK_FILE).exists()


def test_claims_nest_and_leave_no_trace(tmp_path):
    with claimed(tmp_path / "a" / "out"):
        with claimed(tmp_path / "a" / "out"):
            pass
        assert (tmp_path / "a" / "out" / LOCK_FILE).exists()
    assert not (tmp_path / "a" / "out").exists()


def test_a_folder_that_cannot_be_made_is_refused_before_training(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ValueError, match="out: nothing can be written there .* give another output_dir"):
        train(LineConfig(output_dir=tmp_path / "out", max_train_steps=2, global_batch_size=2))
