"""The house's own rules: arrows point down, and the occupancy core needs only torch and numpy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "syntheocc"

# What each room may import from the package, besides itself (DESIGN section 1; transitive arrows written out).
ALLOWED = {
    "engine": set(),
    "occupancy": {"engine"},
    "models": {"occupancy", "engine"},
    "pipelines": {"models", "occupancy", "engine"},
    "worlds": {"occupancy", "engine"},
    "evaluation": {"occupancy", "engine"},
    "training": {"pipelines", "models", "occupancy", "engine"},
    "commands": {"training", "evaluation", "pipelines", "models", "worlds", "occupancy", "engine"},
}
# Third-party packages that must never be imported in a room, and those that may only be imported inside functions.
FORBIDDEN = {"occupancy": {"diffusers"}, "engine": {"diffusers"}}
LAZY = {
    "scipy",
    "PIL",
    "tqdm",
    "huggingface_hub",
    "accelerate",
    "transformers",
    "numba",
    "triton",
    "diffusers",
    "tyro",
}


def imports(path: Path):
    """(module, line, at import time?) of every import in a file; TYPE_CHECKING blocks never run and do not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]

    def visit(node, top):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield alias.name, child.lineno, top
            elif isinstance(child, ast.ImportFrom):
                base = ".".join(package[: len(package) - child.level + 1]) if child.level else ""
                module = ".".join(p for p in (base, child.module) if p)
                yield module, child.lineno, top
                for alias in child.names:
                    yield f"{module}.{alias.name}", child.lineno, top
            is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from visit(child, top and not is_function)

    return list(visit(tree, True))


def sources():
    return [p for p in sorted(PACKAGE.rglob("*.py")) if len(p.relative_to(PACKAGE).parts) > 1]


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_arrows_point_down(path):
    room = path.relative_to(PACKAGE).parts[0]
    for module, line, _ in imports(path):
        parts = module.split(".")
        if parts[0] == "syntheocc" and len(parts) > 1 and (PACKAGE / parts[1]).is_dir():
            assert parts[1] in {room} | ALLOWED[room], (
                f"{path}:{line} imports {module}: {room} may not know {parts[1]}"
            )
        assert parts[0] not in FORBIDDEN.get(room, ()), f"{path}:{line} imports {module}"


def test_the_occupancy_core_imports_only_torch_and_numpy_at_the_top():
    for path in sources():
        parts = path.relative_to(PACKAGE).parts
        if parts[0] != "occupancy" or "perception" in parts or path.stem.split("_")[0] in ("triton", "numba"):
            continue
        for module, line, top in imports(path):
            assert not (top and module.split(".")[0] in LAZY), f"{path}:{line} imports {module} at import time"


def test_the_occupancy_core_runs_with_nothing_but_torch_and_numpy():
    """Renders an MPI in a process in which every other third-party package refuses to be imported."""
    script = """
import sys
class Without:
    # Finds what the real finder finds, except these packages: to Python they are not installed.
    names = {"scipy", "PIL", "tqdm", "huggingface_hub", "accelerate", "transformers", "diffusers", "numba", "llvmlite",
             "triton", "tyro", "safetensors", "peft", "matplotlib", "cv2", "pandas", "regex", "tokenizers", "yaml"}
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in self.names else self.finder.find_spec(name, path, target)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
import torch
import syntheocc.occupancy as occ
for name in occ.__all__:
    getattr(occ, name)
labels = torch.zeros(occ.OCC3D_NUSCENES.spec.shape, dtype=torch.uint8) + 17
labels[150] = 4
grid = occ.OccupancyGrid(labels, *occ.OCC3D_NUSCENES)
cam2ego = torch.tensor([[0., 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 1], [0, 0, 0, 1]])
rig = occ.CameraRig({"front": occ.Camera([[100., 0, 50], [0, 100, 30], [0, 0, 1]], cam2ego, 60, 100)})
assert (occ.render_mpi(grid, rig, 6, 10).nearest == 4).any()
import syntheocc.occupancy.metrics as metrics
for name in metrics.__all__:
    getattr(metrics, name)
few = metrics.lidar_rays()[::99]
for metric, extra in ((metrics.RayIoU(directions=few), ()), (metrics.RayPQ(directions=few), (None, labels.int()))):
    metric.update(grid, labels.numpy(), *extra, [[[0.0, 0.0, 1.0]]])
    assert metric.compute()[type(metric).__name__] == 1.0
print("rendered")
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout.strip() == "rendered", result.stderr


def test_files_stay_readable():
    """A file past 500 lines holds two ideas."""
    long = {str(p.relative_to(ROOT)): n for p in PACKAGE.rglob("*.py") if (n := len(p.read_text().splitlines())) > 500}
    assert not long, long
