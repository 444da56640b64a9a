"""Some samples of the nuScenes tables as tables of their own: what refers to anything else is left out or linked anew.

Example:
    >>> rows = subset_tables(read_tables("data/nuscenes"), tokens)  # doctest: +SKIP
    >>> write_tables("data/part/v1.0-trainval", rows)  # doctest: +SKIP
"""

from collections.abc import Callable, Collection, Hashable, Iterable
from typing import Any

from syntheocc.occupancy.data.nuscenes import TABLE_NAMES, NuScenesTables

__all__ = ["subset_tables"]

Rows = dict[str, list[dict[str, Any]]]


def subset_tables(
    tables: NuScenesTables,
    tokens: Collection[str],
    sweeps_of: Collection[str] = ("lidar", "radar"),
    annotations: dict[str, list[dict[str, Any]]] | None = None,
) -> Rows:
    """The rows of all thirteen tables that belong to some samples.

    Chains (`prev`, `next`) skip what is left out; a scene begins and ends with its first and last sample that is
    kept, an instance with its annotations. Tables that hold no samples' data (category, attribute, visibility, sensor)
    stay whole.

    Args:
        tables: the source.
        tokens: of the samples that are kept.
        sweeps_of: modalities whose firings between the key frames are kept too (those that belong to a kept sample).
        annotations: sample token -> the annotation rows that it has instead of its own; instances that the source
            lacks are made from the rows' `category_name`.

    Returns:
        table name -> rows, in the source's order.

    Raises:
        ValueError: a token that the tables lack, or a row or field that is needed and missing.
    """
    chosen = set(tokens)
    unknown = sorted(chosen - {row["token"] for row in tables.table("sample")})
    if unknown:
        raise ValueError(f"{tables.folder}/sample.json: no sample has the token {', '.join(unknown[:5])}")
    rows: Rows = {name: [] for name in TABLE_NAMES}
    for name in ("category", "attribute", "visibility", "sensor"):
        rows[name] = [dict(row) for row in tables.table(name)] if tables.has(name) else []
    samples = [row for row in tables.table("sample") if row["token"] in chosen]
    rows["sample"] = linked(samples, lambda row: row["scene_token"])
    scene_of = {row["token"]: row["scene_token"] for row in samples}
    modality = {row["token"]: tables.field("sensor", row, "modality") for row in tables.table("sensor")}
    sensor_of = {
        row["token"]: tables.field("calibrated_sensor", row, "sensor_token")
        for row in tables.table("calibrated_sensor")
    }

    def kept(row: dict[str, Any]) -> bool:
        if tables.field("sample_data", row, "sample_token") not in chosen:
            return False
        kind = modality[sensor_of[tables.field("sample_data", row, "calibrated_sensor_token")]]
        return bool(row.get("is_key_frame")) or kind in sweeps_of

    # A sensor's chain runs within its scene.
    rows["sample_data"] = linked(
        [row for row in tables.table("sample_data") if kept(row)],
        lambda row: (scene_of[row["sample_token"]], sensor_of[row["calibrated_sensor_token"]]),
    )
    _keep_named(tables, rows, "ego_pose", {row["ego_pose_token"] for row in rows["sample_data"]})
    mounts = {row["calibrated_sensor_token"] for row in rows["sample_data"]}
    _keep_named(tables, rows, "calibrated_sensor", mounts)
    rows["scene"] = _scenes(tables, rows["sample"])
    _keep_named(tables, rows, "log", {row["log_token"] for row in rows["scene"] if "log_token" in row})
    logs = {row["token"] for row in rows["log"]}
    if tables.has("map"):
        for row in tables.table("map"):
            own = [token for token in row.get("log_tokens", []) if token in logs]
            if own:
                rows["map"].append({**row, "log_tokens": own})
    if tables.has("sample_annotation"):
        replaced = annotations or {}
        found = [row for row in tables.table("sample_annotation") if row["sample_token"] in chosen - set(replaced)]
        found += [row for token, own in replaced.items() if token in chosen for row in own]
        # In the samples' order, so that every object's chain runs forward in time.
        place = {row["token"]: (row["timestamp"], i) for i, row in enumerate(rows["sample"])}
        found.sort(key=lambda row: place[row["sample_token"]])
        rows["sample_annotation"] = linked(found, lambda row: row["instance_token"])
        rows["instance"] = _instances(tables, rows)
    return rows


def linked(rows: Iterable[dict[str, Any]], by: Callable[[dict[str, Any]], Hashable]) -> list[dict[str, Any]]:
    """Copies of rows whose `prev` and `next` lead to the row before and after it that `by` maps to the same.

    Rows with a timestamp are chained in its order, others in the order given, which the result keeps; "" at the ends.
    """
    copies = [dict(row) for row in rows]
    chains: dict[Hashable, list[dict[str, Any]]] = {}
    for row in copies:
        chains.setdefault(by(row), []).append(row)
    for chain in chains.values():
        if all("timestamp" in row for row in chain):
            chain.sort(key=lambda row: row["timestamp"])
        for i, row in enumerate(chain):
            row["prev"] = chain[i - 1]["token"] if i else ""
            row["next"] = chain[i + 1]["token"] if i + 1 < len(chain) else ""
    return copies


def _keep_named(tables: NuScenesTables, rows: Rows, table: str, tokens: set[str]) -> None:
    rows[table] = [dict(row) for row in tables.table(table) if row["token"] in tokens]
    missing = tokens - {row["token"] for row in rows[table]}
    if missing:
        raise ValueError(f"{tables.folder}/{table}.json: no row has the token {sorted(missing)[0]!r}, which is needed")


def _scenes(tables: NuScenesTables, samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    by_scene: dict[str, list[dict[str, Any]]] = {}
    for row in samples:
        by_scene.setdefault(row["scene_token"], []).append(row)
    scenes = []
    for row in tables.table("scene"):
        members = sorted(by_scene.get(row["token"], []), key=lambda sample: sample["timestamp"])
        if members:
            ends = {"first_sample_token": members[0]["token"], "last_sample_token": members[-1]["token"]}
            scenes.append({**row, "nbr_samples": len(members), **ends})
    return scenes


def _instances(tables: NuScenesTables, rows: Rows) -> list[dict[str, Any]]:
    chains: dict[str, list[dict[str, Any]]] = {}
    for row in rows["sample_annotation"]:
        chains.setdefault(row["instance_token"], []).append(row)
    known = {row["token"]: row for row in tables.table("instance")} if tables.has("instance") else {}
    categories = {row["name"]: row["token"] for row in rows["category"]}
    instances = []
    for token in dict.fromkeys([*(token for token in known if token in chains), *chains]):
        chain = chains[token]
        row = known.get(token, {})
        if not row:
            name = tables.category_of(chain[0])
            if name not in categories:
                raise ValueError(
                    f"{tables.folder}/category.json: no category is named {name!r}, which annotation "
                    f"{chain[0]['token']} has; it has {', '.join(categories)}"
                )
            row = {"token": token, "category_token": categories[name]}
        ends = {"first_annotation_token": chain[0]["token"], "last_annotation_token": chain[-1]["token"]}
        instances.append({**row, "nbr_annotations": len(chain), **ends})
    return instances
