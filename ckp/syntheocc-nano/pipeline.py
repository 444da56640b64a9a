"""Lets diffusers load this folder when nothing of syntheocc is imported:

DiffusionPipeline.from_pretrained(folder, custom_pipeline="pipeline", trust_remote_code=True). With the package
imported no flag is needed: syntheocc.SyntheOccPipeline.from_pretrained(folder).
"""

from syntheocc.pipelines import SyntheOccPipeline

__all__ = ["SyntheOccPipeline"]
