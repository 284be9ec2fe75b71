"""Old networks in today's form.

``layers { layer { type: "conv" } }`` is V0, ``layers { type: CONVOLUTION }`` V1.

The order is Caffe's: V0 to V1 to today's form, then the ``input`` fields to Input layers.
"""

from __future__ import annotations

from typing import Any

from onnxaccel.converters.caffe.schema import message
from onnxaccel.errors import ConversionError

_V1_TYPES = {
    "ABSVAL": "AbsVal",
    "ARGMAX": "ArgMax",
    "BN": "BN",
    "BNLL": "BNLL",
    "HDF5_DATA": "HDF5Data",
    "HDF5_OUTPUT": "HDF5Output",
    "LRN": "LRN",
    "MVN": "MVN",
    "RELU": "ReLU",
    "SOFTMAX_LOSS": "SoftmaxWithLoss",
    "TANH": "TanH",
}
"""Layer types of V1 networks whose names did not change by capitalisation alone."""

_V0_TYPES = {
    "conv": "CONVOLUTION",
    "images": "IMAGE_DATA",
    "innerproduct": "INNER_PRODUCT",
    "pool": "POOLING",
}
"""Layer types of V0 networks that V1 calls otherwise than in capitals."""

_V0_FIELDS: dict[str, dict[str, str]] = {
    "conv": {
        "num_output": "convolution_param.num_output",
        "biasterm": "convolution_param.bias_term",
        "weight_filler": "convolution_param.weight_filler",
        "bias_filler": "convolution_param.bias_filler",
        "pad": "convolution_param.pad",
        "kernelsize": "convolution_param.kernel_size",
        "group": "convolution_param.group",
        "stride": "convolution_param.stride",
    },
    "innerproduct": {
        "num_output": "inner_product_param.num_output",
        "biasterm": "inner_product_param.bias_term",
        "weight_filler": "inner_product_param.weight_filler",
        "bias_filler": "inner_product_param.bias_filler",
    },
    "pool": {
        "pad": "pooling_param.pad",
        "kernelsize": "pooling_param.kernel_size",
        "stride": "pooling_param.stride",
        "pool": "pooling_param.pool",
    },
    "dropout": {"dropout_ratio": "dropout_param.dropout_ratio"},
    "lrn": {name: f"lrn_param.{name}" for name in ("local_size", "alpha", "beta", "k")},
    "concat": {"concat_dim": "concat_param.concat_dim"},
    "data": {
        "source": "data_param.source",
        "batchsize": "data_param.batch_size",
        "rand_skip": "data_param.rand_skip",
    },
    "hdf5_data": {"source": "hdf5_data_param.source", "batchsize": "hdf5_data_param.batch_size"},
    "images": {
        "source": "image_data_param.source",
        "batchsize": "image_data_param.batch_size",
        "rand_skip": "image_data_param.rand_skip",
        "new_height": "image_data_param.new_height",
        "new_width": "image_data_param.new_width",
        "shuffle_images": "image_data_param.shuffle",
    },
    "window_data": {
        "source": "window_data_param.source",
        "batchsize": "window_data_param.batch_size",
        "det_fg_threshold": "window_data_param.fg_threshold",
        "det_bg_threshold": "window_data_param.bg_threshold",
        "det_fg_fraction": "window_data_param.fg_fraction",
        "det_context_pad": "window_data_param.context_pad",
        "det_crop_mode": "window_data_param.crop_mode",
    },
    "infogain_loss": {"source": "infogain_loss_param.source"},
    "hdf5_output": {"hdf5_output_param": "hdf5_output_param"},
}
"""Where the fields of a V0 layer go, by its type."""

_V0_TRANSFORM = {"scale": "scale", "meanfile": "mean_file", "cropsize": "crop_size", "mirror": "mirror"}


def upgraded(net: Any, source: str) -> list[tuple[Any, int]]:
    """The layers of a NetParameter in today's form, each with its place among those of the file (-1: none).

    Raises:
        ConversionError: Old and new layers are mixed, or an old one cannot be brought to today's form.
    """
    if net.layers and net.layer:
        raise ConversionError(f"{source}: mixes 'layer' and 'layers'; upgrade the old ones")
    if any(old.HasField("layer") for old in net.layers):
        old_layers = _without_padding(net, source)
    else:
        old_layers = [(old, place) for place, old in enumerate(net.layers)]
    layers = [(_from_v1(old), place) for old, place in old_layers]
    layers += [(layer, place) for place, layer in enumerate(net.layer)]
    return [*((layer, -1) for layer in _inputs(net, source)), *layers]


def _inputs(net: Any, source: str) -> list[Any]:
    """The old ``input`` fields as Input layers."""
    layers = []
    for index, name in enumerate(net.input):
        layer = message("LayerParameter")(name=name, type="Input", top=[name])
        if net.input_shape:
            dims = list(net.input_shape[index].dim) if index < len(net.input_shape) else []
        else:
            dims = list(net.input_dim[4 * index : 4 * index + 4])
        if not dims:
            raise ConversionError(f"{source}: input {name!r} has no shape; add an input_shape")
        layer.input_param.shape.add(dim=dims)
        layers.append(layer)
    return layers


def _from_v1(old: Any) -> Any:
    """A V1 layer as today's."""
    kind = old.DESCRIPTOR.fields_by_name["type"].enum_type.values_by_number[old.type].name
    name = _V1_TYPES.get(kind, "".join(word.capitalize() for word in kind.split("_")))
    new = message("LayerParameter")(name=old.name, type=name, bottom=old.bottom, top=old.top)
    for parameter, value in old.ListFields():
        if parameter.name.endswith("_param"):
            getattr(new, parameter.name).CopyFrom(value)
    for rule in ("include", "exclude"):
        getattr(new, rule).extend(getattr(old, rule))
    new.loss_weight.extend(old.loss_weight)
    for index in range(max(len(old.blobs_lr), len(old.weight_decay), len(old.param))):
        spec = new.param.add()
        if index < len(old.param):
            spec.name = old.param[index]
        if index < len(old.blob_share_mode):
            spec.share_mode = old.blob_share_mode[index]
        if index < len(old.blobs_lr):
            spec.lr_mult = old.blobs_lr[index]
        if index < len(old.weight_decay):
            spec.decay_mult = old.weight_decay[index]
    for data in ("data_param", "image_data_param", "window_data_param"):
        if old.HasField(data):
            _move_transform(getattr(new, data), new.transform_param)
    return new


def _move_transform(data: Any, transform: Any) -> None:
    """Scale, mean, crop and mirror used to stand among a data layer's own parameters."""
    for name in ("scale", "mean_file", "crop_size", "mirror"):
        if data.HasField(name):
            setattr(transform, name, getattr(data, name))
            data.ClearField(name)


def _without_padding(net: Any, source: str) -> list[tuple[Any, int]]:
    """V0 layers as V1's; a "padding" layer goes into the convolution or pooling behind it."""
    padding: dict[str, tuple[str, int]] = {}
    layers = []
    for place, connection in enumerate(net.layers):
        old = connection.layer
        bottoms = list(connection.bottom)
        pads = {padding[name][1] for name in bottoms if name in padding}
        if pads and (len(bottoms) != 1 or old.type not in ("conv", "pool")):
            raise ConversionError(
                f"{source}: layer {old.name!r} reads a padding layer; only a conv or pool layer can"
            )
        if old.type == "padding":
            padding[connection.top[0]] = (bottoms[0], old.pad)
            continue
        new = _from_v0(old, source)
        if pads:
            settings = new.convolution_param if old.type == "conv" else new.pooling_param
            settings.ClearField("pad")
            pad = pads.pop()
            if old.type == "conv":
                settings.pad.append(pad)
            else:
                settings.pad = pad
        new.bottom.extend(padding[name][0] if name in padding else name for name in bottoms)
        new.top.extend(connection.top)
        layers.append((new, place))
    return layers


def _from_v0(old: Any, source: str) -> Any:
    """A V0 layer as V1's, without its connections."""
    v1 = message("V1LayerParameter")
    kinds = v1.DESCRIPTOR.fields_by_name["type"].enum_type.values_by_name
    kind = _V0_TYPES.get(old.type, old.type.upper())
    if kind not in kinds:
        raise ConversionError(f"{source}: layer {old.name!r}: the old type {old.type!r} is not known")
    new = v1(name=old.name, type=kinds[kind].number, blobs_lr=old.blobs_lr, weight_decay=old.weight_decay)
    places = _V0_FIELDS.get(old.type, {})
    for parameter, value in old.ListFields():
        if parameter.name in places:
            *path, last = places[parameter.name].split(".")
            target = getattr(new, path[0]) if path else new
            _set(target, last, value)
        elif parameter.name in _V0_TRANSFORM:
            setattr(new.transform_param, _V0_TRANSFORM[parameter.name], value)
    return new


def _set(target: Any, name: str, value: Any) -> None:
    if hasattr(value, "CopyFrom"):
        getattr(target, name).CopyFrom(value)
    elif hasattr(getattr(target, name), "append"):
        getattr(target, name).append(value)
    else:
        setattr(target, name, value)
