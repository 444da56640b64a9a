"""The notebooks: committed without outputs, and run from their first cell to their last."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_outputs_are_committed(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.cells and notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("# ")
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None, cell.source[:60]
    # What an editor leaves: who ran it, where, with which Python.
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3" and set(notebook.metadata.language_info) == {"name"}


def test_there_are_notebooks_and_no_other_files_beside_them():
    assert [path.stem for path in NOTEBOOKS] == ["evaluation", "loop", "own_scene"]


def executed(name, folder, monkeypatch):
    """The notebook after it was run in `folder`; an error in a cell is one here."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    notebook = nbformat.read(ROOT / "examples" / "notebooks" / f"{name}.ipynb", as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    return nbclient.NotebookClient(notebook, timeout=500, kernel_name="python3", resources=resources).execute()


def outputs(notebook):
    """Printed text, and pictures uint8 [H, W, 3] in order."""
    from PIL import Image

    text, pictures = "", []
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            text += output.get("text", "")
            encoded = output.get("data", {}).get("image/png")
            if encoded:
                pictures.append(np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")))
    return text, pictures


@pytest.mark.slow
def test_from_a_grid_to_images(tmp_path, monkeypatch):
    text, (solid, conditions, images, changed, above) = outputs(executed("own_scene", tmp_path, monkeypatch))
    assert "(3, 256, 112, 200) cameras, planes, rows, columns" in text and "fov_deg: 70" in text
    assert conditions.shape == (112, 3 * 200 + 8, 3) and images.shape == (224, 3 * 400 + 8, 3)
    assert images.std() > 20 and solid.std() > 20
    # The bus stands where the car stood, right of the middle lane's line, and the rest of the street stays.
    before, after = (changed[:, 404 * i : 404 * i + 400].astype(int) for i in (0, 1))
    difference = np.abs(before - after).mean(-1)
    assert difference[80:170, 100:200].mean() > 3 * difference[:, 300:].mean()
    assert above.shape[1] == 2 * 160


@pytest.mark.slow
def test_scoring(tmp_path, monkeypatch):
    text, (comparison,) = outputs(executed("evaluation", tmp_path, monkeypatch))
    scores = {
        line.split()[0]: (float(line.split()[2]), float(line.split()[4]))
        for line in text.splitlines()
        if "RayIoU" in line
    }
    assert set(scores) == {"shifted", "thick", "blind"}
    # What the notebook says of them.
    assert max(scores, key=lambda name: scores[name][0]) == "blind" == min(scores, key=lambda name: scores[name][1])
    assert comparison.std() > 20


@pytest.mark.slow
def test_the_loop(tmp_path, monkeypatch):
    text, (comparison, solid, sheet) = outputs(executed("loop", tmp_path, monkeypatch))
    assert comparison.std() > 20 and solid.std() > 20 and sheet.shape[1] == 6 * 400 + 5 * 4
    assert "prediction / label" in text and "read again / asked for" in text and "views / condition" in text
    assert text.count("refused: ") == 3 and "no rule maps" in text and "has no picture; the rig has" in text
    read, asked = (int(number) for number in re.findall(r"(\d+) (?:occupied voxels|are asked)", text))
    assert asked > read > 0
