"""Tables, JSON and strips."""

import json
import math

import pytest
import torch

from syntheocc.evaluation.bootstrap import Interval
from syntheocc.evaluation.report import markdown_table, plain, strip, write_strip


def test_table_cells():
    table = markdown_table(["what", "a", "b"], [["x", Interval(0.5, 0.25, 0.75), math.nan], ["y", 3, None]], digits=2)
    assert table.splitlines()[2:] == ["| x | 0.50 [0.25, 0.75] | - |", "| y | 3 | - |"]
    with pytest.raises(ValueError, match="3 columns"):
        markdown_table(["a", "b", "c"], [["x", 1]])


def test_plain_is_json():
    value = {"i": Interval(1.0, math.nan, 2.0), 3: (torch.tensor([1.0, math.inf]), "x")}
    text = json.dumps(plain(value), allow_nan=False)
    assert json.loads(text) == {"i": {"value": 1.0, "low": None, "high": 2.0}, "3": [[1.0, None], "x"]}


def test_a_strip_enlarges_conditions_and_keeps_pixels(tmp_path):
    pictures = torch.rand(2, 3, 4, 6)
    condition = torch.tensor([[[0, 255, 7]], [[1, 2, 3]], [[9, 8, 7]]], dtype=torch.uint8)[None].repeat(2, 1, 2, 1)
    sheet = strip([condition, pictures], gap=1)
    assert sheet.shape == (9, 13, 3)
    assert sheet[0, 2].tolist() == [255, 2, 8] and sheet[3, 3].tolist() == [255, 2, 8]
    assert sheet[4, 0].tolist() == [255, 255, 255]
    assert sheet[5, 7].tolist() == [round(float(v) * 255) for v in pictures[1, :, 0, 0]]
    write_strip(tmp_path / "s.png", [condition, pictures])
    assert (tmp_path / "s.png").stat().st_size > 0
