"""Every layer type that converts, with the parameters that its formula depends on."""

from __future__ import annotations

import numpy as np

from tests.converters.caffe import formulas
from tests.converters.caffe.case import Case, layer

VECTOR = ((3, 5),)
LABELLED = ((4, 5), ((4,), "below:5"))
PIXELS = ((2, 5, 3, 4), ((2, 1, 3, 4), "below:5"))
CONV = "convolution_param {{ num_output: {} {} }}".format
POOL = "pooling_param {{ {} }}".format
TALL = (2, 4, 9, 7)


def recurrent(hidden: int, more: str = "") -> str:
    return f"recurrent_param {{ num_output: {hidden} {more} }}"


ELEMENTWISE = [
    Case("AbsVal"),
    Case("BNLL"),
    Case("ELU"),
    Case("ELU", "elu_param { alpha: 0.3 }"),
    Case("Exp", "exp_param { base: 2 scale: 0.5 shift: 1 }"),
    Case("Exp", "exp_param { scale: 0.5 shift: -1 }"),
    Case("Log", "log_param { base: 10 scale: 2 shift: 0.5 }", (((2, 4, 7, 7), "positive"),)),
    Case("Log", "", (((2, 4, 7, 7), "positive"),)),
    Case("Power", "power_param { power: 2 scale: 3 shift: 1 }"),
    Case("Power", "power_param { power: 0.5 scale: 2 shift: 0.1 }", (((2, 4), "positive"),)),
    Case("Power", "power_param { scale: 0 power: 2 shift: 3 }"),
    Case("Power", "power_param { power: 0 }"),
    Case("Power"),
    Case("ReLU"),
    Case("ReLU", "relu_param { negative_slope: 0.1 }"),
    Case("ReLU6"),
    Case("ReLU6", "relu6_param { threshold: 1 negative_slope: 0.2 }"),
    Case("PReLU", "", blobs=((4,),)),
    Case("PReLU", "", VECTOR, blobs=((5,),)),
    Case("PReLU", "prelu_param { channel_shared: true }", blobs=((),)),
    Case("Sigmoid"),
    Case("TanH"),
    Case("Threshold", "threshold_param { threshold: 0.5 }", (((2, 4, 7, 7), "ties"),)),
    Case("HardSigmoid"),
    Case("HardSigmoid", "hardsigmoid_param { alpha: 0.5 beta: 0.3 }"),
    Case("HardSwish"),
    Case("Dropout"),
    Case("Dropout", "dropout_param { dropout_ratio: 0.3 }", trained=True),
    Case("Softmax"),
    Case("Softmax", "softmax_param { axis: -1 }"),
    Case("Softmax", "", VECTOR),
    Case(
        "Swish",
        "swish_param { beta: 1.5 }",
        as_caffe=layer("Power", "a", "s", "power_param { scale: 1.5 }")
        + layer("Sigmoid", "s", "t")
        + layer("Eltwise", "a t", "y", "eltwise_param { operation: PROD }"),
    ),
    Case(
        "Mish",
        as_caffe=layer("BNLL", "a", "s")
        + layer("TanH", "s", "t")
        + layer("Eltwise", "a t", "y", "eltwise_param { operation: PROD }"),
    ),
    Case("Clip", "clip_param { min: -0.5 max: 1 }", formula=lambda feed, _: feed["a"].clip(-0.5, 1)),
]

WINDOWS = [
    Case("Convolution", CONV(6, "kernel_size: 3"), blobs=((6, 4, 3, 3), (6,))),
    Case("Convolution", CONV(6, "kernel_size: 3 stride: 2 pad: 1 bias_term: false"), blobs=((6, 4, 3, 3),)),
    Case("Convolution", CONV(6, "kernel_size: 3 dilation: 2 pad: 2 group: 2"), blobs=((6, 2, 3, 3), (6,))),
    Case(
        "Convolution",
        CONV(6, "kernel_h: 3 kernel_w: 1 stride_h: 2 stride_w: 1 pad_h: 1 pad_w: 0"),
        (TALL,),
        blobs=((6, 4, 3, 1), (6,)),
    ),
    Case(
        "Convolution",
        CONV(6, "kernel_size: 3 kernel_size: 1 stride: 2 stride: 3 pad: 1 pad: 0"),
        (TALL,),
        blobs=((6, 4, 3, 1), (6,)),
    ),
    Case("Convolution", CONV(4, "kernel_size: 3 axis: 1"), ((2, 3, 8),), blobs=((4, 3, 3), (4,))),
    Case(
        "Convolution",
        CONV(4, "kernel_size: 3 kernel_size: 2 kernel_size: 1"),
        ((2, 3, 5, 6, 4),),
        blobs=((4, 3, 3, 2, 1), (4,)),
    ),
    Case("Deconvolution", CONV(6, "kernel_size: 3"), blobs=((4, 6, 3, 3), (6,))),
    Case("Deconvolution", CONV(6, "kernel_size: 4 stride: 2 pad: 1 group: 2"), blobs=((4, 3, 4, 4), (6,))),
    Case(
        "Deconvolution",
        CONV(4, "kernel_h: 3 kernel_w: 2 stride: 3 dilation: 2 bias_term: false"),
        blobs=((4, 4, 3, 2),),
    ),
    Case(
        "DepthwiseConvolution",
        CONV(4, "kernel_size: 3 pad: 1"),
        blobs=((4, 1, 3, 3), (4,)),
        as_caffe=layer("Convolution", "a", "y", CONV(4, "kernel_size: 3 pad: 1 group: 4"), "l"),
    ),
    Case(
        "ConvolutionDepthwise",
        CONV(4, "kernel_size: 3 stride: 2"),
        blobs=((4, 1, 3, 3), (4,)),
        as_caffe=layer("Convolution", "a", "y", CONV(4, "kernel_size: 3 stride: 2 group: 4"), "l"),
    ),
    Case("Im2col", "convolution_param { kernel_size: 3 stride: 2 pad: 1 }"),
    Case("Im2col", "convolution_param { kernel_h: 2 kernel_w: 3 dilation: 2 }", (TALL,)),
    *(
        Case("Pooling", POOL(f"pool: {method} kernel_size: {k} stride: {s} pad: {q} {rest}"), (TALL,))
        for method in ("MAX", "AVE")
        for k, s, q, rest in (
            (2, 2, 0, ""),
            (3, 2, 0, ""),
            (3, 2, 1, ""),
            (3, 3, 2, ""),
            (4, 3, 1, ""),
            (5, 4, 2, ""),
            (1, 1, 0, ""),
            (3, 2, 0, "ceil_mode: false"),
            (3, 2, 1, "ceil_mode: false"),
        )
    ),
    Case("Pooling", POOL("pool: MAX kernel_size: 1 stride: 2"), (TALL,)),
    Case("Pooling", POOL("kernel_h: 3 kernel_w: 2 stride_h: 2 stride_w: 1 pad_h: 1 pad_w: 0"), (TALL,)),
    Case("Pooling", POOL("pool: AVE kernel_h: 2 kernel_w: 3 stride: 2 pad_h: 0 pad_w: 1"), (TALL,)),
    Case("Pooling", POOL("pool: MAX global_pooling: true"), (TALL,)),
    Case("Pooling", POOL("pool: AVE global_pooling: true"), (TALL,)),
    Case("Pooling", POOL("pool: MAX kernel_size: 3 stride: 2 pad: 1"), ((TALL, "ties"),), tops=2),
    Case("Pooling", POOL("pool: MAX kernel_size: 2 stride: 2"), ((TALL, "ties"),), tops=2),
    Case("SPP", "spp_param { pyramid_height: 3 }", (TALL,)),
    Case("SPP", "spp_param { pyramid_height: 2 pool: AVE }", (TALL,)),
    Case("SPP", "spp_param { pyramid_height: 1 }", (TALL,)),
    Case("MaxUnPool", "max_unpool_param { dst_h: 6 dst_w: 7 }", ((2, 2, 3, 3), ((2, 2, 3, 3), "below:42"))),
    Case("Upsample", "upsample_param { scale: 2 }"),
    Case("Upsample", "upsample_param { scale: 3 dims_num: 3 }", ((2, 4, 5),)),
    Case(
        "Upsample",
        "upsample_param { scale: 2 }",
        ((2, 2, 3, 4), ((2, 2, 3, 4), "below:48")),
        as_caffe=layer("MaxUnPool", "a b", "y", "max_unpool_param { dst_h: 6 dst_w: 8 }"),
    ),
    Case(
        "Upsample",
        "upsample_param { scale: 2 pad_out_h: true pad_out_w: true }",
        ((2, 2, 3, 4), ((2, 2, 3, 4), "below:35")),
        as_caffe=layer("MaxUnPool", "a b", "y", "max_unpool_param { dst_h: 5 dst_w: 7 }"),
    ),
    Case(
        "ROIPooling",
        "roi_pooling_param { pooled_h: 2 pooled_w: 3 spatial_scale: 0.5 }",
        ((1, 3, 9, 8), ((5, 5), "rois:16")),
        formula=lambda feed, _: formulas.roi_pooling(feed["a"], feed["b"], 2, 3, 0.5),
        dynamic=False,
    ),
    Case("InnerProduct", "inner_product_param { num_output: 3 }", blobs=((3, 196), (3,))),
    Case("InnerProduct", "inner_product_param { num_output: 3 bias_term: false }", VECTOR, blobs=((3, 5),)),
    Case(
        "InnerProduct",
        "inner_product_param { num_output: 3 transpose: true }",
        VECTOR,
        blobs=((5, 3), (3,)),
    ),
    Case("InnerProduct", "inner_product_param { num_output: 3 axis: 2 }", blobs=((3, 49), (3,))),
    Case(
        "InnerProduct",
        "inner_product_param { num_output: 3 axis: -1 transpose: true }",
        blobs=((7, 3), (3,)),
    ),
    Case(
        "Embed",
        "embed_param { num_output: 3 input_dim: 6 }",
        (((2, 4), "below:6"),),
        blobs=((6, 3), (3,)),
    ),
    Case(
        "Embed",
        "embed_param { num_output: 3 input_dim: 6 bias_term: false }",
        (((4,), "below:6"),),
        blobs=((6, 3),),
    ),
]

NORMS = [
    Case("LRN"),
    Case("LRN", "lrn_param { local_size: 3 alpha: 0.5 beta: 0.6 k: 2 }"),
    Case("LRN", "lrn_param { local_size: 3 alpha: 0.5 norm_region: WITHIN_CHANNEL }"),
    Case("LRN", "lrn_param { local_size: 5 beta: 0.5 norm_region: WITHIN_CHANNEL }"),
    *(
        Case("BatchNorm", settings, inputs, blobs, trained=trained)
        for settings, inputs, blobs, trained in (
            ("", ((2, 4, 7, 7),), ((4,), np.arange(1, 5.0), np.array([2.0])), False),
            (
                "batch_norm_param { eps: 0.01 }",
                ((2, 4, 7, 7),),
                ((4,), np.arange(1, 5.0), np.array([999.0])),
                True,
            ),
            ("", ((2, 4, 7, 7),), ((4,), np.arange(1, 5.0), np.array([0.0])), False),
            (
                "batch_norm_param { use_global_stats: true }",
                ((3, 4),),
                ((4,), np.arange(1, 5.0), np.array([1.0])),
                False,
            ),
            (
                "batch_norm_param { use_global_stats: false }",
                ((2, 4, 7, 7),),
                ((4,), np.arange(1, 5.0), np.array([2.0])),
                False,
            ),
        )
    ),
    Case("Scale", "", blobs=((4,),)),
    Case("Scale", "scale_param { bias_term: true }", blobs=((4,), (4,))),
    Case("Scale", "scale_param { axis: 2 num_axes: 2 bias_term: true }", blobs=((7, 7), (7, 7))),
    Case("Scale", "scale_param { axis: 1 num_axes: -1 }", blobs=((4, 7, 7),)),
    Case("Scale", "scale_param { num_axes: 0 bias_term: true }", blobs=(np.array(1.7), np.array(0.3))),
    Case("Scale", "scale_param { axis: 0 }", ((2, 4, 7, 7), (2, 4))),
    Case("Scale", "scale_param { axis: 1 }", ((2, 4, 7, 7), (4,)), dynamic=False),
    Case("Scale", "scale_param { axis: 0 }", ((2, 4, 7, 7), (2, 4, 7, 7))),
    Case(
        "Scale", "scale_param { axis: 2 bias_term: true }", ((2, 4, 7, 6), (7,)), blobs=((7,),), dynamic=False
    ),
    Case("Bias", "", blobs=((4,),)),
    Case("Bias", "bias_param { axis: 2 num_axes: -1 }", blobs=((7, 7),)),
    Case("Bias", "bias_param { axis: 0 }", ((2, 4, 7, 7), (2, 4))),
    Case("MVN"),
    Case("MVN", "mvn_param { across_channels: true eps: 0.01 }"),
    Case("MVN", "mvn_param { normalize_variance: false }"),
    Case("Normalize", "", blobs=((),)),
    Case("Normalize", "norm_param { across_spatial: false channel_shared: false }", blobs=((4,),)),
    Case("Normalize", "norm_param { across_spatial: false eps: 0.1 }", blobs=((),)),
    Case(
        "BN",
        "bn_param { bn_mode: INFERENCE }",
        blobs=((1, 4, 1, 1), (1, 4, 1, 1)),
        formula=lambda feed, blobs: feed["a"] * blobs[0] + blobs[1],
    ),
    Case(
        "BN",
        "bn_param { frozen: true eps: 0.01 }",
        blobs=((1, 4, 1, 1), (1, 4, 1, 1), (1, 4, 1, 1), np.arange(1, 5.0).reshape(1, 4, 1, 1)),
        formula=lambda feed, b: (feed["a"] - b[2]) / np.sqrt(b[3] + 0.01) * b[0] + b[1],
    ),
]

SHAPES = [
    Case("Flatten"),
    Case("Flatten", "flatten_param { axis: 2 }"),
    Case("Flatten", "flatten_param { axis: 0 end_axis: 1 }"),
    Case("Flatten", "flatten_param { axis: 1 end_axis: -2 }"),
    Case("Reshape", "reshape_param { shape { dim: 0 dim: -1 dim: 7 } }"),
    Case("Reshape", "reshape_param { shape { dim: 0 dim: 0 dim: -1 } }"),
    Case("Reshape", "reshape_param { shape { dim: 2 dim: 2 } axis: 1 num_axes: 1 }"),
    Case("Reshape", "reshape_param { shape { dim: 1 } axis: 1 num_axes: 0 }"),
    Case("Reshape", "reshape_param { shape { dim: 49 } axis: -3 }"),
    Case("Reshape", "reshape_param { shape { dim: 2 dim: 196 } }", dynamic=False),
    Case("Reshape", "reshape_param { shape { dim: -1 dim: 49 } }"),
    Case("Permute", "permute_param { order: 0 order: 2 order: 3 order: 1 }"),
    Case("Permute", "permute_param { order: 0 order: 3 }"),
    Case("Unsqueeze", "unsqueeze_param { dim: 1 }", VECTOR),
    Case("Tile", "tile_param { tiles: 3 }"),
    Case("Tile", "tile_param { tiles: 2 axis: -1 }"),
    Case("Crop", "", ((2, 4, 9, 8), (2, 4, 5, 6))),
    Case("Crop", "crop_param { axis: 2 offset: 1 offset: 2 }", ((2, 4, 9, 8), (2, 3, 5, 6))),
    Case("Crop", "crop_param { axis: 1 offset: 1 }", ((2, 4, 9, 8), (2, 3, 5, 6))),
    Case("Crop", "crop_param { axis: 3 offset: 2 }", ((2, 4, 9, 8), (2, 4, 9, 6))),
    Case("Pad", "pad_param { pad_u: 1 pad_d: 2 pad_l: 3 pad_r: 0 pad_value: 0.5 }"),
    Case("Pad", "pad_param { pad_type: REPLICATE pad_u: 1 pad_d: 2 pad_l: 3 pad_r: 1 }"),
    Case("Pad", "pad_param { pad_type: REFLECT pad_u: 1 pad_d: 2 pad_l: 3 pad_r: 1 }"),
    Case("Pad", "pad_param { pad_u: -1 pad_d: -2 pad_l: -1 pad_r: -1 }"),
    Case("PixelShuffle", "pixelshuffle_param { upscale_factor: 2 }", ((2, 8, 3, 5),)),
    Case(
        "ShuffleChannel",
        "shuffle_channel_param { group: 3 }",
        ((2, 6, 3, 4),),
        as_caffe=layer("Reshape", "a", "s", "reshape_param { shape { dim: 3 dim: 2 } axis: 1 num_axes: 1 }")
        + layer("Permute", "s", "t", "permute_param { order: 0 order: 2 order: 1 }")
        + layer("Reshape", "t", "y", "reshape_param { shape { dim: 6 } axis: 1 num_axes: 2 }"),
    ),
    *(
        Case("Reduction", f"reduction_param {{ operation: {op} axis: {axis} coeff: {coeff} }}")
        for op, axis, coeff in (
            ("SUM", 0, 1),
            ("ASUM", 1, 0.5),
            ("SUMSQ", 2, 2),
            ("MEAN", 3, 1),
            ("MEAN", -2, 3),
        )
    ),
    Case("ArgMax", "", (((3, 5), "ties"),)),
    Case("ArgMax", "argmax_param { top_k: 3 }", (((3, 2, 2, 5), "ties"),)),
    Case("ArgMax", "argmax_param { top_k: 2 out_max_val: true }", (((3, 2, 2, 5), "ties"),)),
    Case("ArgMax", "argmax_param { axis: 1 }", (((3, 5, 2, 3), "ties"),)),
    Case("ArgMax", "argmax_param { axis: -1 top_k: 2 out_max_val: true }", (((3, 5, 2, 3), "ties"),)),
    Case("BilinearInterpolate", "bilinear_interpolate_param { dst_h: 11 dst_w: 5 }"),
    Case("BilinearInterpolate", "bilinear_interpolate_param { scale_factor: 2 align_corners: false }"),
    Case("Resize", "resize_param { height: 11 width: 5 }"),
    Case("Resize", "resize_param { is_pyramid_test: true out_height_scale: 2 out_width_scale: 0.5 }"),
    *(
        Case(
            "Interp",
            f"interp_param {{ {settings} }}",
            inputs,
            as_caffe=layer(
                "BilinearInterpolate", "a", "y", f"bilinear_interpolate_param {{ dst_h: {h} dst_w: {w} }}"
            ),
        )
        for settings, inputs, h, w in (
            ("height: 11 width: 5", ((2, 4, 7, 7),), 11, 5),
            ("zoom_factor: 3", ((2, 4, 7, 5),), 19, 13),
            ("shrink_factor: 2", ((2, 4, 7, 5),), 4, 3),
            ("shrink_factor: 2 zoom_factor: 3", ((2, 4, 7, 5),), 10, 7),
        )
    ),
]

SEVERAL = [
    Case("Concat", "", ((2, 3, 4, 5), (2, 4, 4, 5))),
    Case("Concat", "concat_param { axis: 2 }", ((2, 3, 4, 5), (2, 3, 1, 5), (2, 3, 2, 5))),
    Case("Concat", "concat_param { concat_dim: 3 }", ((2, 3, 4, 5), (2, 3, 4, 1))),
    Case("Concat", "concat_param { axis: 0 }", ((2, 3), (2, 3))),
    Case("Slice", "", ((2, 6, 3),), tops=3),
    Case("Slice", "slice_param { slice_point: 1 slice_point: 4 }", ((2, 6, 3),), tops=3),
    Case("Slice", "slice_param { axis: -1 slice_point: 2 }", ((2, 6, 3),), tops=2),
    Case("Slice", "slice_param { slice_dim: 2 }", ((2, 4, 6, 2),), tops=2),
    Case("Split", "", tops=2),
    *(
        Case("Eltwise", f"eltwise_param {{ {settings} }}", ((2, 3, 4, 5),) * number)
        for settings, number in (
            ("", 2),
            ("operation: SUM coeff: 0.5 coeff: -2", 2),
            ("operation: SUM coeff: 1 coeff: -1 coeff: 2", 3),
            ("operation: PROD", 3),
            ("operation: MAX", 2),
        )
    ),
    Case("BatchReindex", "", ((4, 3, 2), ((5,), "below:4")), dynamic=False),
    Case("Filter", "", ((6, 3, 2), (6, 2), ((6, 1), "below:2")), tops=2, dynamic=False),
    Case(
        "Axpy",
        "",
        ((2, 4, 1, 1), (2, 4, 3, 3), (2, 4, 3, 3)),
        as_caffe=layer("Reshape", "a", "s", "reshape_param { shape { dim: 0 dim: 0 } }")
        + layer("Scale", "b s", "t", "scale_param { axis: 0 }")
        + layer("Eltwise", "t c", "y"),
    ),
    Case("Parameter", "parameter_param { shape { dim: 2 dim: 3 } }", (), blobs=((2, 3),), dynamic=False),
]

RECURRENT = [
    case
    for kind, blobs, states in (
        ("LSTM", ((12, 4), (12,), (12, 3)), 2),
        ("RNN", ((3, 4), (3,), (3, 3), (3, 3), (3,)), 1),
    )
    for case in (
        Case(kind, recurrent(3), ((5, 2, 4), ((5, 2), "cont")), blobs, dynamic=False),
        Case(kind, recurrent(3), ((70, 2, 4), ((70, 2), "cont")), blobs, dynamic=False),
        Case(kind, recurrent(3), ((1, 2, 4), ((1, 2), "cont")), blobs, dynamic=False, trained=True),
        Case(
            kind,
            recurrent(3),
            ((5, 2, 2, 2), ((5, 2), "cont"), (2, 6)),
            (*blobs[:2], (blobs[0][0], 6), *blobs[2:]),
            dynamic=False,
        ),
        Case(
            kind,
            recurrent(3, "expose_hidden: true"),
            ((5, 2, 4), ((5, 2), "cont"), *[(1, 2, 3)] * states),
            blobs,
            tops=1 + states,
            dynamic=False,
        ),
    )
]
RECURRENT.append(Case("LSTMUnit", "", ((1, 2, 3), (1, 2, 12), ((1, 2), "below:2")), tops=2, dynamic=False))

HEADS = [
    Case("SoftmaxWithLoss", "", LABELLED),
    Case(
        "SoftmaxWithLoss",
        "",
        PIXELS,
        tops=2,
        as_caffe=layer("SoftmaxWithLoss", "a b", "y") + layer("Softmax", "a", "y1"),
    ),
    Case("SoftmaxWithLoss", "softmax_param { axis: 1 } loss_param { ignore_label: 2 }", PIXELS),
    *(
        Case("SoftmaxWithLoss", f"loss_param {{ ignore_label: 2 {more} }}", PIXELS)
        for more in (
            "normalization: FULL",
            "normalization: BATCH_SIZE",
            "normalization: NONE",
            "normalize: false",
            "normalize: true",
        )
    ),
    Case("EuclideanLoss", "", ((3, 4, 2), (3, 4, 2))),
    Case("HingeLoss", "", LABELLED),
    Case("HingeLoss", "hinge_loss_param { norm: L2 }", LABELLED),
    Case("MultinomialLogisticLoss", "", (((4, 5), "probabilities"), ((4,), "below:5"))),
    Case("ContrastiveLoss", "", ((4, 3), (4, 3), ((4,), "below:2"))),
    Case(
        "ContrastiveLoss",
        "contrastive_loss_param { margin: 3 legacy_version: true }",
        ((4, 3), (4, 3), ((4,), "below:2")),
    ),
    Case("SigmoidCrossEntropyLoss", "", ((3, 4, 2), ((3, 4, 2), "below:2"))),
    *(
        Case(
            "SigmoidCrossEntropyLoss",
            f"loss_param {{ {settings} }}",
            ((3, 4, 2), ((3, 4, 2), "signed:2")),
            formula=lambda feed, _, mode=mode: formulas.sigmoid_cross_entropy(feed["a"], feed["b"], -1, mode),
        )
        for settings, mode in (
            ("ignore_label: -1 normalization: VALID", "VALID"),
            ("ignore_label: -1 normalization: FULL", "FULL"),
            ("ignore_label: -1", "BATCH_SIZE"),
            ("ignore_label: -1 normalize: true", "VALID"),
        )
    ),
    Case(
        "InfogainLoss",
        "",
        ((4, 5), ((4,), "below:5"), (1, 1, 5, 5)),
        as_caffe=layer("Softmax", "a", "s") + layer("InfogainLoss", "s b c", "y"),
        dynamic=False,
    ),
    Case(
        "InfogainLoss",
        "loss_param { ignore_label: 2 }",
        ((2, 5, 3, 4), ((2, 1, 3, 4), "below:5"), (1, 1, 5, 5)),
        formula=lambda feed, _: formulas.infogain(feed["a"], feed["b"], feed["c"], 2),
        dynamic=False,
    ),
    Case("SmoothL1Loss", "", ((3, 4), (3, 4))),
    Case(
        "SmoothL1Loss",
        "",
        ((3, 4), (3, 4), (3, 4)),
        formula=lambda feed, _: formulas.smooth_l1(*feed.values(), np.ones((3, 4)), sigma=1),
        dynamic=False,
    ),
    Case(
        "SmoothL1Loss",
        "smooth_l1_loss_param { sigma: 3 }",
        ((3, 4), (3, 4), (3, 4), (3, 4)),
        formula=lambda feed, _: formulas.smooth_l1(*feed.values(), sigma=3),
    ),
    Case("Accuracy", "", LABELLED),
    Case("Accuracy", "accuracy_param { top_k: 2 }", LABELLED, tops=2),
    Case("Accuracy", "accuracy_param { ignore_label: 1 }", PIXELS, tops=2),
    Case(
        "Accuracy",
        "accuracy_param { top_k: 2 }",
        (((9, 5), "ties"), ((9,), "below:5")),
        formula=lambda feed, _: formulas.accuracy(feed["a"], feed["b"], 2),
    ),
]

CASES = [*ELEMENTWISE, *WINDOWS, *NORMS, *SHAPES, *SEVERAL, *RECURRENT, *HEADS]
