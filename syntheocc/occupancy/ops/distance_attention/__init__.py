"""Attention whose logits fall with distance, each query choosing how fast (scale-adaptive; SparseBEV, eq. 3).

    out[b, h, i] = sum_j softmax_j(query_i . key_j / sqrt(d) - falloff[b, h, i] |center_i - center_j|) value_j

Gradients go to query, key, value and falloff. With dropout a share of the softmax's weights is zeroed and the rest
scaled up, as in torch's attention; every sample draws with a seed of its own, so that it does not matter with which
others it is in a batch. The implementations draw differently: with dropout they agree in distribution only.

Implementations of one signature: `reference` (all weights at once, torch's softmax), `torch` (torch's fused attention,
which reads the distances as a mask [B, h, Q, Q]) and `triton` (GPU: distances are computed where they are needed,
memory grows with Q and not with its square; its gradients are the same from run to run).

Legend: B samples, h heads, Q queries, d channels of a head.
"""

from collections.abc import Sequence

from torch import Tensor

from syntheocc.occupancy.ops.mpi_lookup import has_module

__all__ = ["BACKENDS", "choose_backend", "distance_attention"]

BACKENDS = ("reference", "torch", "triton")
# Channels of a head that the kernel keeps at hand.
MAX_CHANNELS = 128


def distance_attention(
    query: Tensor,  # [B, h, Q, d]
    key: Tensor,  # [B, h, Q, d]
    value: Tensor,  # [B, h, Q, d]
    falloff: Tensor,  # [B, h, Q]
    centers: Tensor,  # [B, Q, 2]
    dropout: float = 0.0,
    seeds: Sequence[int] | None = None,
    backend: str | None = None,
) -> Tensor:
    """Attend among points on the ground.

    Args:
        query: of float32, float16 or bfloat16, as key and value; sums are float32.
        key: see above.
        value: see above.
        falloff: by how much a logit falls with a metre; may be negative.
        centers: where the queries are, in metres; no gradients.
        dropout: share of the weights that is zeroed, below 1.
        seeds: of the dropout, one a sample; None draws from torch's own state.
        backend: one of `BACKENDS`; None takes triton on a GPU where it is installed, else torch.

    Returns:
        [B, h, Q, d] of the query's dtype.

    Raises:
        ValueError: shapes or devices do not fit, a dropout out of range, or a backend that cannot run here.
    """
    _check(query, key, value, falloff, centers, dropout, seeds)
    name = backend or choose_backend(query)
    if name == "reference":
        from syntheocc.occupancy.ops.distance_attention.reference import distance_attention_reference as attend
    elif name == "torch":
        from syntheocc.occupancy.ops.distance_attention.vectorised import distance_attention_torch as attend
    elif name == "triton" and has_module("triton") and query.shape[-1] <= MAX_CHANNELS:
        from syntheocc.occupancy.ops.distance_attention.triton import distance_attention_triton as attend
    else:
        raise ValueError(
            f"backend {name!r} cannot run here: choose from {', '.join(BACKENDS)}; triton comes with GPU builds of "
            f"torch and takes heads of at most {MAX_CHANNELS} channels"
        )
    return attend(query, key, value, falloff, centers, dropout, seeds)


def choose_backend(query: Tensor) -> str:
    """The fastest installed implementation for these queries."""
    on_gpu = query.device.type == "cuda" and has_module("triton") and query.shape[-1] <= MAX_CHANNELS
    return "triton" if on_gpu else "torch"


def _check(
    query: Tensor, key: Tensor, value: Tensor, falloff: Tensor, centers: Tensor, dropout: float, seeds: object
) -> None:
    if query.ndim != 4 or not query.is_floating_point():
        raise ValueError(f"query must be float [B, h, Q, d], got {query.dtype} {tuple(query.shape)}")
    for name, tensor, shape in (
        ("key", key, query.shape),
        ("value", value, query.shape),
        ("falloff", falloff, query.shape[:3]),
        ("centers", centers, (query.shape[0], query.shape[2], 2)),
    ):
        if tuple(tensor.shape) != tuple(shape):
            raise ValueError(
                f"{name} must be {tuple(shape)} for queries {tuple(query.shape)}, got {tuple(tensor.shape)}"
            )
        if tensor.device != query.device:
            raise ValueError(f"{name} lies on {tensor.device}, the queries on {query.device}")
    if not key.dtype == value.dtype == query.dtype:
        raise ValueError(f"query, key and value must share a dtype, got {query.dtype}, {key.dtype}, {value.dtype}")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout is {dropout}; it must be at least 0 and below 1")
    if seeds is not None and len(seeds) != len(query):  # type: ignore[arg-type]
        raise ValueError(f"{len(seeds)} seeds for {len(query)} samples; give one a sample")  # type: ignore[arg-type]
