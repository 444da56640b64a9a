"""Diffusion pipelines: occupancy in, street views out."""

from syntheocc.pipelines.pipeline_output import SyntheOccPipelineOutput
from syntheocc.pipelines.pipeline_syntheocc import SyntheOccPipeline
from syntheocc.pipelines.shim import register

__all__ = ["SyntheOccPipeline", "SyntheOccPipelineOutput"]

register(SyntheOccPipeline)
