"""MPIs on disk in the form that SyntheOcc released (specs/syntheocc.md 1.2), one set of files a camera picture.

`<stem>` is the picture's path with `samples` replaced by `samples_syntheocc_surocc` and without `.jpg`:

| file                   | content                                                                                  |
|------------------------|------------------------------------------------------------------------------------------|
| `<stem>_mtp256.npz`    | scipy CSR uint8 [256 * h, w]: planes near to far, one below the other                    |
| `<stem>_mtp96.npz`     | the same for the grouped planes, stored FAR TO NEAR                                      |
| `<stem>_fuseweight.png`| uint8 [h, w], class of the nearest non-empty plane, 0 none                               |
| `<stem>_depthmap.png`  | uint8 [h, w], index of that plane                                                        |
| `<stem>_occrgb.png`    | the classes of `_fuseweight.png` in colour                                               |

Legend: V views, D layers, h w cells.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from syntheocc.engine.files import atomic_path, atomic_write_image, read_npz
from syntheocc.occupancy.rendering.mpi import PlaneSpec, SemanticMPI
from syntheocc.occupancy.taxonomy import SYNTHEOCC_TAXONOMY, Taxonomy

__all__ = ["MPI_FOLDER", "mpi_file_names", "mpi_stem", "read_mpi_files", "write_mpi_files"]

MPI_FOLDER = "samples_syntheocc_surocc"


def mpi_stem(image_path: str | os.PathLike, root: str | os.PathLike | None = None, folder: str = MPI_FOLDER) -> Path:
    """The stem of a picture's MPI files.

    Args:
        image_path: a path with a `samples` component, e.g. `data/nuscenes/samples/CAM_FRONT/x.jpg`.
        root: put the files below this folder instead of beside `samples`.
        folder: what takes the place of `samples`.

    Raises:
        ValueError: the path has no `samples` component, or leads out of it again by `..`.
    """
    path = Path(image_path)
    places = [i for i, part in enumerate(path.parts) if part == "samples"]
    if not places:
        raise ValueError(f"{path}: MPI files are named after a picture below a samples/ folder; this path has none")
    if ".." in path.parts[places[-1] :]:
        raise ValueError(f"{path}: leads out of its samples/ folder, beside which the MPI files are written")
    before = path.parts[: places[-1]] if root is None else (Path(root),)
    return Path(*before, folder, *path.parts[places[-1] + 1 :]).with_suffix("")


def mpi_file_names(stem: str | os.PathLike, num_layers: Sequence[int] = (256,)) -> list[Path]:
    """Every file of one picture's MPIs, for a job that asks what is done already."""
    endings = [f"_mtp{n}.npz" for n in num_layers] + ["_fuseweight.png", "_depthmap.png", "_occrgb.png"]
    return [_with(stem, ending) for ending in endings]


def write_mpi_files(mpi: SemanticMPI, stems: Mapping[str, str | os.PathLike]) -> list[Path]:
    """Write the files of one frame; each appears by rename.

    The grouped and the plain MPI of one frame write the same three pictures, so either order gives the same files.

    Args:
        mpi: a single frame whose free id is 0 (`render_mpi(..., taxonomy=SYNTHEOCC.taxonomy)`).
        stems: camera name -> stem (`mpi_stem`), for every camera of the MPI.

    Returns:
        The paths written.

    Raises:
        ValueError: a batch, a taxonomy whose free id is not 0, more than 256 planes, or a camera without a stem.
    """
    if mpi.is_batched:
        raise ValueError("MPI files hold one frame; index the batch first (mpi[i])")
    if mpi.taxonomy.free != 0:
        raise ValueError(
            f"MPI files mark empty cells by 0, but 0 is {mpi.taxonomy.classes[0]!r} in {mpi.taxonomy.name!r}; render "
            "with taxonomy=SYNTHEOCC.taxonomy"
        )
    if mpi.planes.num_planes > 256:
        raise ValueError(f"{mpi.planes.num_planes} planes do not fit the 8-bit depth picture; use at most 256")
    absent = [name for name in mpi.names if name not in stems]
    if absent:
        raise ValueError(f"no place is given for the MPI files of {', '.join(absent)}")
    written = []
    colors = mpi.taxonomy.colors()
    for view, name in enumerate(mpi.names):
        layers = mpi.labels[view].cpu().numpy()
        path = _with(stems[name], f"_mtp{mpi.planes.num_layers}.npz")
        _write_csr(path, _as_stored(layers, mpi.planes))
        nearest = mpi.nearest[view].cpu().numpy()
        pictures = {
            "_fuseweight.png": nearest,
            "_depthmap.png": mpi.nearest_plane[view].cpu().numpy().astype(np.uint8),
            "_occrgb.png": colors[nearest],
        }
        for ending, picture in pictures.items():
            atomic_write_image(_with(stems[name], ending), picture)
        written += mpi_file_names(stems[name], [mpi.planes.num_layers])
    return written


def read_mpi_files(
    stems: Mapping[str, str | os.PathLike],
    planes: PlaneSpec = PlaneSpec(),  # noqa: B008 (frozen)
    pixel_origin: str = "corner",
    taxonomy: Taxonomy = SYNTHEOCC_TAXONOMY,
) -> SemanticMPI:
    """Read the MPI of one frame.

    Args:
        stems: camera name -> stem (`mpi_stem`), in view order.
        planes: which planes the files hold: their number picks the `_mtp<n>.npz`, the files do not say where they lie.
        pixel_origin: the convention they were rendered with, "corner" for the released ones.
        taxonomy: their class table.

    Returns:
        A `SemanticMPI`; `nearest` follows from the layers, the plane of a grouped one from `_depthmap.png`.

    Raises:
        ValueError: a missing or truncated file, a wrong shape, an unknown class id, a taxonomy whose free id is not 0.
    """
    if taxonomy.free != 0:
        raise ValueError(f"MPI files mark empty cells by 0, but 0 is {taxonomy.classes[0]!r} in {taxonomy.name!r}")
    labels: list[np.ndarray] = []
    nearest_planes: list[np.ndarray] = []
    for stem in stems.values():
        path = _with(stem, f"_mtp{planes.num_layers}.npz")
        stored = _read_csr(path)
        if stored.shape[0] % planes.num_layers or stored.dtype != np.uint8:
            raise ValueError(
                f"{path}: {stored.dtype} of shape {list(stored.shape)}; {planes.num_layers} layers of uint8 classes "
                "have a multiple of that many rows"
            )
        if stored.max(initial=0) >= taxonomy.num_classes:
            raise ValueError(f"{path}: class id {stored.max()} is not in the table {taxonomy.name!r}")
        layers = _as_stored(stored.reshape(planes.num_layers, -1, stored.shape[1]), planes)
        if labels and layers.shape != labels[0].shape:
            raise ValueError(f"{path}: layers of shape {list(layers.shape)}, the other views' {list(labels[0].shape)}")
        labels.append(np.ascontiguousarray(layers))
        if planes.groups is not None:
            nearest_planes.append(_read_picture(_with(stem, "_depthmap.png"), layers.shape[1:]))
    stacked = torch.from_numpy(np.stack(labels))
    first = (stacked != taxonomy.free).to(torch.uint8).argmax(dim=1, keepdim=True)
    nearest = stacked.gather(1, first)[:, 0]
    plane = first[:, 0] if planes.groups is None else torch.from_numpy(np.stack(nearest_planes))
    return SemanticMPI(stacked, nearest, plane.to(torch.int16), taxonomy, planes, pixel_origin, tuple(stems))


def _with(stem: str | os.PathLike, ending: str) -> Path:
    # Not `with_suffix`: a file name may hold dots.
    return Path(f"{os.fspath(stem)}{ending}")


def _as_stored(layers: np.ndarray, planes: PlaneSpec) -> np.ndarray:
    """Grouped layers are stored far to near; its own inverse."""
    return layers if planes.groups is None else layers[::-1]


def _write_csr(path: Path, layers: np.ndarray) -> None:
    from scipy import sparse

    with atomic_path(path) as temporary:
        sparse.save_npz(temporary, sparse.csr_matrix(layers.reshape(-1, layers.shape[-1])))


def _read_csr(path: Path) -> np.ndarray:
    from scipy import sparse

    if not path.is_file():
        raise ValueError(f"{path}: no such file; make the MPI files first (utils/gen_mtp.py)")
    # Not `scipy.sparse.load_npz`, which has a different exception for every kind of damage.
    arrays = read_npz(path, ["data", "indices", "indptr", "shape"])
    try:
        matrix = sparse.csr_matrix((arrays["data"], arrays["indices"], arrays["indptr"]), shape=arrays["shape"])
        # Indices beyond the shape would be written past the array's end.
        matrix.check_format(full_check=True)
        return matrix.toarray()
    except (ValueError, TypeError, MemoryError) as error:
        raise ValueError(f"{path}: is no scipy sparse matrix ({error}); it is damaged, make it again") from error


def _read_picture(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            picture = np.asarray(image)
    except (OSError, UnidentifiedImageError) as error:
        raise ValueError(f"{path}: cannot be read as a picture ({error}); make the MPI files again") from error
    if picture.dtype != np.uint8 or picture.shape != tuple(shape):
        raise ValueError(f"{path}: {picture.dtype} {list(picture.shape)}, want uint8 {list(shape)}")
    return picture
