"""Latents of the training pictures, encoded once and kept as files.

    <root>/<fingerprint of VAE, size and precision>/<token>.safetensors     "moments" [V, 2C, h, w]

The VAE's moments (mean and log variance) are kept, not a sample: every step still draws its own. A file names the
pictures that it was made of, with their sizes and times; when one of them has changed, it is made again. Files appear
by rename, and what is there is not made twice, so an interrupted job goes on where it stopped.

Legend: V views, C latent channels, H W pixels, h w latent pixels.
"""

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from syntheocc.engine.files import atomic_path
from syntheocc.occupancy.data.frames import Frame

__all__ = ["LatentCache", "fingerprint"]


class LatentCache:
    """The cached latents of one VAE at one picture size.

    Args:
        root: where the folders of all VAEs and sizes lie.
        name: of this one's folder, `fingerprint(...)`.
    """

    def __init__(self, root: str | Path, name: str):
        self.folder = Path(root) / name

    def path(self, frame: Frame) -> Path:
        """The file of a frame."""
        return self.folder / f"{frame.token}.safetensors"

    def read(self, frame: Frame) -> Tensor:
        """The moments of a frame, [V, 2C, h, w].

        Raises:
            ValueError: they are not there, or the file is damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self.path(frame)
        try:
            return load_file(path)["moments"]
        except FileNotFoundError:
            raise ValueError(
                f"{path}: no cached latents; the pictures could not be read when they were made (see the job's start)"
            ) from None
        except (OSError, SafetensorError, KeyError) as error:
            raise ValueError(f"{path}: cached latents cannot be read ({error}); delete the file") from error

    def is_current(self, frame: Frame) -> bool:
        """Whether the frame's file is there, whole, and made of the pictures as they are now."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path(frame), framework="pt") as file:
                return (file.metadata() or {}).get("sources") == _sources(frame)
        except (OSError, SafetensorError):
            return False

    def fill(
        self,
        frames: Sequence[Frame],
        read: Callable[[Frame], Tensor],
        encode: Callable[[Tensor], Tensor],
        readers: int = 1,
        show: bool = True,
    ) -> tuple[int, dict[str, str]]:
        """Make what is missing.

        Args:
            frames: of this process; others may fill the same folder.
            read: frame -> pictures uint8 [V, 3, H, W]; a ValueError leaves the frame out.
            encode: pictures -> moments [V, 2C, h, w].
            readers: threads that read ahead (decoding pictures holds no lock of Python's).
            show: draw a progress bar.

        Returns:
            The number of files made, and token -> reason of the frames that were left out.
        """
        from safetensors.torch import save_file
        from tqdm import tqdm

        def read_missing(frame: Frame) -> tuple[str, Tensor] | None:
            if self.is_current(frame):
                return None
            sources = _sources(frame)  # before the pictures are read: a change meanwhile is noticed
            return sources, read(frame)

        made, failed = 0, {}
        with tqdm(total=len(frames), desc="latents", unit="sample", disable=not show) as bar:
            for frame, result in _read_ahead(read_missing, frames, readers):
                bar.update()
                try:
                    found = result()
                except (ValueError, OSError) as error:
                    self.path(frame).unlink(missing_ok=True)  # what is there was made of other pictures
                    failed[frame.token] = str(error)
                    continue
                if found is None:
                    continue
                sources, images = found
                with atomic_path(self.path(frame)) as temporary:
                    save_file({"moments": encode(images).contiguous().cpu()}, temporary, metadata={"sources": sources})
                made += 1
        return made, failed


def fingerprint(vae: nn.Module, height: int, width: int, dtype: torch.dtype) -> str:
    """16 hex digits that change with the VAE's weights or config, the pictures' size and the precision.

    Args:
        vae: before it is cast to `dtype`.
        height: of the pictures, pixels.
        width: of the pictures, pixels.
        dtype: in which it encodes.
    """
    config = {name: value for name, value in dict(vae.config).items() if not name.startswith("_")}  # type: ignore
    digest = hashlib.blake2b(json.dumps([config, height, width, str(dtype)], sort_keys=True, default=str).encode())
    for name, tensor in sorted(vae.state_dict().items()):
        if not name.startswith(("decoder.", "post_quant_conv.")):  # they do not encode
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


@torch.no_grad()
def encode_moments(vae: Any, images: Tensor) -> Tensor:
    """The VAE's moments [V, 2C, h, w] of pictures uint8 [V, 3, H, W], in the VAE's dtype, on its device."""
    pixels = images.to(vae.device).float() / 127.5 - 1
    return vae.encode(pixels.to(vae.dtype)).latent_dist.parameters


def _read_ahead(
    read: Callable[[Frame], Any], frames: Sequence[Frame], readers: int
) -> Iterator[tuple[Frame, Callable[[], Any]]]:
    """Each frame in order with a function that gives what was read of it, or raises; two a reader are under way."""
    waiting: deque[tuple[Frame, Future]] = deque()
    with ThreadPoolExecutor(max(1, readers)) as pool:
        try:
            for frame in frames:
                waiting.append((frame, pool.submit(read, frame)))
                if len(waiting) > 2 * max(1, readers):
                    first, future = waiting.popleft()
                    yield first, future.result
            for first, future in waiting:
                yield first, future.result
        finally:
            pool.shutdown(cancel_futures=True)


def _sources(frame: Frame) -> str:
    """What the pictures of a frame are: names, bytes and times."""
    described = []
    for camera in frame.cameras.names:
        path = frame.image_paths.get(camera)
        if path is None:
            raise ValueError(f"{camera} has no picture; make the infos again")
        found = path.stat()
        described.append([camera, path.name, found.st_size, found.st_mtime_ns])
    return json.dumps(described)
