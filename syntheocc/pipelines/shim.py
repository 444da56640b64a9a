"""How a saved folder finds this package again.

diffusers looks a pipeline's class up among its own names; a class of another package is found when it has been put
there (`register`), or, with nothing imported, through a `pipeline.py` in the saved folder (`write_shim`).
"""

import os
from pathlib import Path

import diffusers

from syntheocc.engine.files import atomic_write_text

SHIM_NAME = "pipeline.py"

SHIM = '''"""Lets diffusers load this folder when nothing of syntheocc is imported:

DiffusionPipeline.from_pretrained(folder, custom_pipeline="pipeline", trust_remote_code=True). With the package
imported no flag is needed: syntheocc.SyntheOccPipeline.from_pretrained(folder).
"""

from syntheocc.pipelines import SyntheOccPipeline

__all__ = ["SyntheOccPipeline"]
'''


def write_shim(folder: str | os.PathLike) -> Path:
    """Write `pipeline.py` into `folder` (created if missing); returns its path."""
    path = Path(folder) / SHIM_NAME
    atomic_write_text(path, SHIM)
    return path


def register(pipeline_class: type) -> None:
    """Make `DiffusionPipeline.from_pretrained` find `pipeline_class` by name, as it finds diffusers' own."""
    setattr(diffusers, pipeline_class.__name__, pipeline_class)
