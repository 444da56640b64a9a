"""Tables of a straight drive whose sweeps, velocities and poses can be checked by hand.

Every scene: three key frames half a second apart, one lidar turn and one firing of each camera between them (a quarter
of a second after a key frame). The car drives along global x at 4 m/s; camera and lidar are mounted without a turn but
for the lidar's quarter (its y is ego's x). A car ahead drives at 6 m/s, 20 m ahead in the first frame.
"""

import hashlib
import json
from pathlib import Path

HALF = 0.5**0.5
FIRST_US = 1_600_000_000_000_000
CHANNELS = (
    "LIDAR_TOP",
    "CAM_FRONT",
    "CAM_FRONT_RIGHT",
    "CAM_FRONT_LEFT",
    "CAM_BACK",
    "CAM_BACK_LEFT",
    "CAM_BACK_RIGHT",
)
# A camera looks along ego x: its z is ego's x, its x is ego's -y.
FORWARD = [0.5, -0.5, 0.5, -0.5]


def token(*parts):
    return hashlib.md5("/".join(map(str, parts)).encode()).hexdigest()


def drive_tables(scenes=("scene-0061", "scene-0103"), radar=True, annotations=True, sweeps=True):
    """Table name -> rows."""
    rows = {name: [] for name in "sample sample_data ego_pose calibrated_sensor scene log instance".split()}
    channels = CHANNELS + (("RADAR_FRONT",) if radar else ())
    rows["sensor"] = [{"token": token(c), "channel": c, "modality": c.split("_")[0].lower()} for c in channels]
    rows["category"] = [{"token": token("car"), "name": "vehicle.car"}]
    rows["attribute"] = [{"token": token("moving"), "name": "vehicle.moving"}]
    rows["sample_annotation"] = []
    for number, name in enumerate(scenes):
        start = FIRST_US + 1_000_000_000 * number
        samples = [token(name, k) for k in range(3)]
        rows["scene"].append({"token": token(name), "name": name, "description": "A straight road", "nbr_samples": 3})
        for k, sample in enumerate(samples):
            rows["sample"].append(
                {"token": sample, "timestamp": start + 500_000 * k, "scene_token": token(name), **links(samples, k)}
            )
        for channel in channels:
            mount = token(name, channel, "mount")
            camera = channel.startswith("CAM")
            rows["calibrated_sensor"].append(
                {"token": mount, "sensor_token": token(channel), "translation": [1.0, 0.0, 1.5],
                 "rotation": FORWARD if camera else [HALF, 0.0, 0.0, -HALF],
                 "camera_intrinsic": [[1000.0, 0, 800], [0, 1000, 450], [0, 0, 1]] if camera else []}
            )  # fmt: skip
            steps = [0, 2, 4] if not sweeps else [0, 1, 2, 3, 4]  # quarters of a second
            tokens = [token(name, channel, step) for step in steps]
            for i, step in enumerate(steps):
                stamp = start + 250_000 * step
                key = step % 2 == 0
                rows["ego_pose"].append(
                    {"token": tokens[i], "timestamp": stamp, "translation": [100.0 + step, 50.0, 0.0],
                     "rotation": [1.0, 0.0, 0.0, 0.0]}
                )  # fmt: skip
                rows["sample_data"].append(
                    {"token": tokens[i], "sample_token": samples[(step + 1) // 2], "ego_pose_token": tokens[i],
                     "calibrated_sensor_token": mount, "timestamp": stamp, "is_key_frame": key,
                     "fileformat": "jpg" if camera else "pcd", "height": 900 * camera, "width": 1600 * camera,
                     "filename": f"{'samples' if key else 'sweeps'}/{channel}/{name}__{channel}__{stamp}.x",
                     **links(tokens, i)}
                )  # fmt: skip
        if annotations:
            instance, own = token(name, "car"), [token(name, "car", k) for k in range(3)]
            rows["instance"].append({"token": instance, "category_token": token("car")})
            rows["sample_annotation"] += [
                {"token": own[k], "sample_token": samples[k], "instance_token": instance,
                 "translation": [120.0 + 3 * k, 50.0, 1.0], "size": [2.0, 4.0, 1.5], "rotation": [1.0, 0, 0, 0],
                 "attribute_tokens": [token("moving")], "num_lidar_pts": 5 - 5 * (k == 2), "num_radar_pts": 0,
                 **links(own, k)}
                for k in range(3)
            ]  # fmt: skip
    return rows


def links(tokens, i):
    return {"prev": tokens[i - 1] if i else "", "next": tokens[i + 1] if i + 1 < len(tokens) else ""}


def write_drive(root: Path, version="v1.0-mini", **options) -> Path:
    folder = root / version
    folder.mkdir(parents=True)
    for name, rows in drive_tables(**options).items():
        (folder / f"{name}.json").write_text(json.dumps(rows, indent=0))
    return folder


def edit_table(folder: Path, table: str, change) -> None:
    rows = json.loads((folder / f"{table}.json").read_text())
    change(rows)
    (folder / f"{table}.json").write_text(json.dumps(rows))
