"""Class tables: the published ids and colours, and the mappings between tables."""

import pytest

from syntheocc.occupancy.taxonomy import (
    NYUV2_TAXONOMY,
    OCC3D_TAXONOMY,
    OPENOCC_V2_TAXONOMY,
    OPENOCCUPANCY_TAXONOMY,
    SEMANTIC_KITTI_TAXONOMY,
    SURROUNDOCC_TAXONOMY,
    SYNTHEOCC_TAXONOMY,
    TARTANAIR_TAXONOMY,
    TAXONOMIES,
    Taxonomy,
    taxonomy_named,
)

STREET = [
    SYNTHEOCC_TAXONOMY,
    OCC3D_TAXONOMY,
    OPENOCC_V2_TAXONOMY,
    SURROUNDOCC_TAXONOMY,
    OPENOCCUPANCY_TAXONOMY,
    SEMANTIC_KITTI_TAXONOMY,
]


def test_published_ids():
    assert SYNTHEOCC_TAXONOMY.id_of("car") == 1 and SYNTHEOCC_TAXONOMY.id_of("vegetation") == 16
    assert OCC3D_TAXONOMY.id_of("others") == 0 and OCC3D_TAXONOMY.id_of("car") == 4 and OCC3D_TAXONOMY.free == 17
    assert OPENOCC_V2_TAXONOMY.id_of("car") == 0 and OPENOCC_V2_TAXONOMY.free == 16
    assert SURROUNDOCC_TAXONOMY.id_of("barrier") == 1 and SURROUNDOCC_TAXONOMY.free == 0
    assert SEMANTIC_KITTI_TAXONOMY.num_classes == 20 and SEMANTIC_KITTI_TAXONOMY.id_of("traffic_sign") == 19
    assert NYUV2_TAXONOMY.num_classes == 12 and TARTANAIR_TAXONOMY.num_classes == 14
    assert SYNTHEOCC_TAXONOMY.foreground == tuple(range(1, 11))


def test_published_colours():
    assert SYNTHEOCC_TAXONOMY.palette[SYNTHEOCC_TAXONOMY.id_of("car")] == (255, 158, 0)
    assert SYNTHEOCC_TAXONOMY.palette[SYNTHEOCC_TAXONOMY.id_of("pedestrian")] == (0, 0, 230)
    assert SYNTHEOCC_TAXONOMY.palette[16] == (0, 175, 0)
    assert OCC3D_TAXONOMY.palette[4] == (0, 150, 245)
    assert OPENOCC_V2_TAXONOMY.palette[0] == (0, 150, 245)
    assert SYNTHEOCC_TAXONOMY.colors()[200].tolist() == [128, 128, 128]


@pytest.mark.parametrize("source", STREET, ids=lambda t: t.name)
@pytest.mark.parametrize("target", STREET, ids=lambda t: t.name)
def test_every_street_table_maps_to_every_other(source, target):
    table = source.mapping_to(target)
    assert table[source.free] == target.free and table[255] == 255
    for label, name in enumerate(source.classes):
        if name in target.classes:
            assert target.classes[table[label]] == name
        elif label != source.free:
            assert table[label] != target.free, f"{name} would vanish into free space"


def test_there_and_back_is_the_identity_between_the_sixteen_class_tables():
    for table in (OPENOCC_V2_TAXONOMY, SURROUNDOCC_TAXONOMY, OPENOCCUPANCY_TAXONOMY, OCC3D_TAXONOMY):
        there, back = SYNTHEOCC_TAXONOMY.mapping_to(table), table.mapping_to(SYNTHEOCC_TAXONOMY)
        assert [int(back[there[i]]) for i in range(17)] == list(range(17))


def test_occ3d_others_is_unknown_elsewhere():
    assert OCC3D_TAXONOMY.mapping_to(SYNTHEOCC_TAXONOMY)[0] == 255


def test_kitti_rules():
    table = SEMANTIC_KITTI_TAXONOMY.mapping_to(SYNTHEOCC_TAXONOMY)
    names = {c: SYNTHEOCC_TAXONOMY.classes[table[i]] for i, c in enumerate(SEMANTIC_KITTI_TAXONOMY.classes)}
    assert names["building"] == "manmade" and names["road"] == "driveable_surface"
    assert names["bicyclist"] == "bicycle" and names["trunk"] == "vegetation"


def test_a_street_does_not_map_to_a_room():
    with pytest.raises(ValueError, match="car.*'syntheocc' to 'nyuv2'"):
        SYNTHEOCC_TAXONOMY.mapping_to(NYUV2_TAXONOMY)
    table = TARTANAIR_TAXONOMY.mapping_to(NYUV2_TAXONOMY)
    assert NYUV2_TAXONOMY.classes[table[TARTANAIR_TAXONOMY.id_of("rug")]] == "floor"


def test_errors_name_the_alternatives():
    with pytest.raises(ValueError, match="no class 'cra'.*car"):
        SYNTHEOCC_TAXONOMY.id_of("cra")
    with pytest.raises(ValueError, match="occ4d.*occ3d"):
        taxonomy_named("occ4d")
    assert taxonomy_named("occ3d") is TAXONOMIES["occ3d"] is OCC3D_TAXONOMY


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"palette": ((0, 0, 0),)}, "2 classes but 1"),
        ({"classes": ("a", "a")}, "twice"),
        ({"free": 2}, "outside"),
        ({"foreground": (5,)}, "outside"),
        ({"palette": ((0, 0, 0), (0, 0, 256))}, r"0\.\.255"),
        ({"palette": ((0, 0, 0), (0, 0))}, "RGB triples"),
    ],
)
def test_tables_are_checked(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Taxonomy(**({"name": "t", "classes": ("a", "b"), "palette": ((0, 0, 0),) * 2, "free": 0} | kwargs))


def test_lists_make_the_same_table():
    table = Taxonomy("t", ["a", "b"], [[0, 0, 0], [1, 2, 3]], 0, [1])
    assert table == Taxonomy("t", ("a", "b"), ((0, 0, 0), (1, 2, 3)), 0, (1,)) and hash(table)


def test_too_many_classes_for_uint8():
    names = tuple(str(i) for i in range(256))
    with pytest.raises(ValueError, match="256 classes"):
        Taxonomy("big", names, ((0, 0, 0),) * 256, free=0)
