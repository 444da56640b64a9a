import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from syntheocc.commands import main
from syntheocc.occupancy import NUSCENES_CAMERAS

ROOT = Path(__file__).resolve().parents[2]


def test_demo_draws_the_street_with_any_model(tiny_model, tmp_path, capsys):
    out = tmp_path / "demo"
    flags = ["--height", "64", "--width", "96", "--num-inference-steps", "1", "--model", str(tiny_model)]
    assert main(["demo", "--output-dir", str(out), *flags]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line]
    assert line.startswith(f"wrote {out / 'street.png'}") and tiny_model.name in line
    names = sorted(str(path.relative_to(out)) for path in out.rglob("*.png"))
    views = [f"views/{name}.png" for name in sorted(NUSCENES_CAMERAS)]
    assert names == ["bev.png", "conditions.png", "generated.png", "occupancy.png", "street.png", *views]
    with Image.open(out / "street.png") as sheet:
        assert sheet.size == (3 * 96 + 2 * 4, 4 * 64 + 3 * 4)
    with Image.open(out / "conditions.png") as sheet:
        # the road lies at the bottom of the front view
        assert sheet.getpixel((100 + 48, 62))[1] > 150


def test_bad_settings_are_refused(capsys, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        main(["demo", "--height", "65"])
    assert stopped.value.code == 2 and "multiples of 8" in capsys.readouterr().err
    assert main(["demo", "--model", str(tmp_path), "--output-dir", str(tmp_path)]) == 2
    assert "no model_index.json" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main(["demo", "--model", str(tmp_path), "--output-dir", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.count("\n") == 1, "one line, although it is no ValueError"
    with pytest.raises(SystemExit):
        main(["generate", "--sed", "3"])


def test_help_needs_neither_torch_nor_diffusers():
    code = (
        "import sys\nfrom syntheocc.commands import main\n"
        "try:\n    main(['generate', '--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'diffusers', 'numpy', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "--cfg-scale" in done.stdout and "guidance by the text" in done.stdout
    assert time.monotonic() - start < 10
