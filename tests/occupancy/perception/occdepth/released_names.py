"""Names and shapes of the released checkpoints' tensors, from specs/occdepth.md 2.1-2.7 and 4, and nothing of ours."""

# (channels, blocks, kernel, expansion) of an EfficientNet-B0's stages.
_STAGES = ((16, 1, 3, 1), (24, 2, 3, 6), (40, 2, 5, 6), (80, 3, 3, 6), (112, 3, 5, 6), (192, 4, 5, 6), (320, 1, 3, 6))
WIDTH_DEPTH = {
    "efficientnet_b3": (1.2, 1.4),
    "efficientnet_b4": (1.4, 1.8),
    "efficientnet_b7": (2.0, 3.1),
    "tiny": (0.25, 0.3),
}


def released_shapes(
    backbone, channels, classes, *, crp=None, cascade=False, depth=None, nyu=False, width=None, mid=128, full=True
):
    """name -> shape.

    Args:
        crp: (mega voxels, relations) of the relation prior.
        depth: bins of the depth network.
        nyu: the names of NYUv2's 3D network.
        width: of the decoder, by default the encoder's last map.
        mid: channels in the depth network.
        full: the 3D network enlarges its volume to the grid.
    """
    names: dict[str, tuple[int, ...]] = {}
    taps = _encoder(names, backbone)
    _decoder(names, taps, width or taps[-1], channels)
    if depth is not None:
        _depth_net(names, channels, mid, depth)
    _volume_net(names, channels, classes, crp, cascade, nyu, full)
    return names


def _norm(names, name, channels):
    for leaf in ("weight", "bias", "running_mean", "running_var"):
        names[f"{name}.{leaf}"] = (channels,)
    names[f"{name}.num_batches_tracked"] = ()


def _conv(names, name, out, into, *kernel, bias=True):
    names[f"{name}.weight"] = (out, into, *kernel)
    if bias:
        names[f"{name}.bias"] = (out,)


def _rounded(channels, width):
    wanted = channels * width
    found = max(8, int(wanted + 4) // 8 * 8)
    return found + 8 if found < 0.9 * wanted else found


def _encoder(names, backbone):
    """timm's names; returns the channels of the taps at 1/2, 1/4, 1/8, 1/16, 1/32."""
    width, depth = WIDTH_DEPTH[backbone]
    top = "net_rgb.encoder.original_model."
    into = _rounded(32, width)
    _conv(names, f"{top}conv_stem", into, 3, 3, 3, bias=False)
    _norm(names, f"{top}bn1", into)
    ends = []
    for stage, (channels, blocks, kernel, expansion) in enumerate(_STAGES):
        out = _rounded(channels, width)
        for index in range(-int(-depth * blocks // 1)):
            block, squeezed = f"{top}blocks.{stage}.{index}.", max(1, int(into * 0.25))
            inner = into * expansion
            if expansion > 1:
                _conv(names, f"{block}conv_pw", inner, into, 1, 1, bias=False)
                _norm(names, f"{block}bn1", inner)
            _conv(names, f"{block}conv_dw", inner, 1, kernel, kernel, bias=False)
            _norm(names, f"{block}{'bn2' if expansion > 1 else 'bn1'}", inner)
            _conv(names, f"{block}se.conv_reduce", squeezed, inner, 1, 1)
            _conv(names, f"{block}se.conv_expand", inner, squeezed, 1, 1)
            _conv(names, f"{block}{'conv_pwl' if expansion > 1 else 'conv_pw'}", out, inner, 1, 1, bias=False)
            _norm(names, f"{block}{'bn3' if expansion > 1 else 'bn2'}", out)
            into = out
        ends.append(out)
    head = _rounded(1280, width)
    _conv(names, f"{top}conv_head", head, into, 1, 1, bias=False)
    _norm(names, f"{top}bn2", head)
    return (ends[0], ends[1], ends[2], ends[4], head)


def _decoder(names, taps, width, channels):
    _conv(names, "net_rgb.decoder.conv2", width, taps[-1], 1, 1)
    into = width
    for level, (scale, skip) in enumerate(zip((16, 8, 4, 2, 1), (*reversed(taps[:-1]), 3), strict=True)):
        out = width // 2 ** (level + 1)
        up = f"net_rgb.decoder.up{scale}._net."
        _conv(names, f"{up}0", out, into + skip, 3, 3)
        _norm(names, f"{up}1", out)
        _conv(names, f"{up}3", out, out, 3, 3)
        _norm(names, f"{up}4", out)
        _conv(names, f"net_rgb.decoder.resize_output_1_{scale}", channels, out, 1, 1)
        into = out


def _depth_net(names, channels, mid, bins):
    top = "flosp_depth.depth_net.0."
    for buffer in ("voxel_size", "voxel_coord", "voxel_num"):
        names[f"flosp_depth.{buffer}"] = (3,)
    _conv(names, f"{top}reduce_conv.0", mid, channels, 3, 3)
    _norm(names, f"{top}reduce_conv.1", mid)
    _conv(names, f"{top}mlp.fc1", mid, 1)
    _conv(names, f"{top}mlp.fc2", mid, mid)
    for name in ("reduce", "expand"):
        _conv(names, f"{top}se.conv_{name}", mid, mid, 1, 1)
    for block in range(3):
        for i in (1, 2):
            _conv(names, f"{top}depth_conv.{block}.conv{i}", mid, mid, 3, 3, bias=False)
            _norm(names, f"{top}depth_conv.{block}.bn{i}", mid)
    _conv(names, f"{top}depth_pred", bins, mid, 1, 1)


def _bottleneck(names, top, into, planes, out, stride):
    for i, (a, b, kernel) in enumerate(
        ((planes, into, (1, 1, 1)), (planes, planes, (1, 1, 3)), (planes, planes, (1, 3, 1)),
         (planes, planes, (3, 1, 1)), (out, planes, (1, 1, 1))), start=1
    ):  # fmt: skip
        _conv(names, f"{top}conv{i}", a, b, *kernel, bias=False)
        _norm(names, f"{top}bn{i}", a)
    for i in (2, 3, 4):  # there also where the stride is 1, and never used then
        _conv(names, f"{top}downsample{i}.1", planes, planes, 1, 1, 1, bias=False)
        _norm(names, f"{top}downsample{i}.2", planes)
    if stride > 1:
        _conv(names, f"{top}downsample.1", out, into, 1, 1, 1, bias=False)
        _norm(names, f"{top}downsample.2", out)


def _aspp(names, top, channels):
    for i in range(3):
        for j in (1, 2):
            _conv(names, f"{top}conv{j}.{i}", channels, channels, 3, 3, 3, bias=False)
            _norm(names, f"{top}bn{j}.{i}", channels)


def _volume_net(names, f, classes, crp, cascade, nyu, full):
    top = "net_3d_decoder."
    levels = ("process_1_4", "process_1_8") if nyu else ("process_l1", "process_l2")
    for level, channels in zip(levels, (f, 2 * f), strict=True):
        for i in range(3):
            _bottleneck(names, f"{top}{level}.0.main.{i}.", channels, channels // 4, channels, 1)
        _bottleneck(names, f"{top}{level}.1.main.", channels, channels // 4, 2 * channels, 2)
    ups = ("up_1_16_1_8", "up_1_8_1_4") if nyu else ("up_13_l2", "up_12_l1")
    sizes = [(ups[0], 4 * f, 2 * f), (ups[1], 2 * f, f)] + ([] if nyu or not full else [("up_l1_lfull", f, f // 2)])
    for name, into, out in sizes:
        names[f"{top}{name}.main.0.weight"] = (into, out, 3, 3, 3)
        names[f"{top}{name}.main.0.bias"] = (out,)
        _norm(names, f"{top}{name}.main.1", out)
    head, width = f"{top}{'ssc_head_1_4' if nyu else 'ssc_head'}.", f if nyu or not full else f // 2
    _conv(names, f"{head}conv0", width, width, 3, 3, 3)
    _aspp(names, head, width)
    _conv(names, f"{head}conv_classes", classes, width + 2 * cascade, 3, 3, 3)
    if cascade:
        _conv(names, f"{head}occ_classes", 2, width, 3, 3, 3)
    if crp is not None:
        mega, relations = crp
        prior, wide = f"{top}CP_mega_voxels.", 4 * f
        _conv(names, f"{prior}mega_context.0", 2 * wide, wide, 3, 3, 3)
        for r in range(relations):
            _conv(names, f"{prior}context_prior_logits.{r}.0", mega, wide, 1, 1, 1)
        _aspp(names, f"{prior}aspp.", wide)
        _conv(names, f"{prior}resize.0", wide, wide + 2 * wide * relations, 1, 1, 1, bias=False)
        _bottleneck(names, f"{prior}resize.1.main.0.", wide, wide // 4, wide, 1)
