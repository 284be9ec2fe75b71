"""Every gradient rule against finite differences in float64, over a table of attributes and shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import parser

import onnxaccel as oa
from onnxaccel.errors import UnsupportedOperator
from onnxaccel.graph.inspect import inspect
from onnxaccel.graph.model import Model
from onnxaccel.graph.normalize import normalize
from tests.graph.gradcheck import finite_difference_error, one_node, runner

RNG = np.random.default_rng(7)


def normal(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape)


def positive(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.uniform(0.5, 2.0, shape)


def ints(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int64)


Case = tuple[str, list[Any], dict[str, Any]]

CASES: list[Case] = [
    *[
        (op, [normal(3, 4)], {})
        for op in ("Identity", "Neg", "Relu", "Sigmoid", "Tanh", "Exp", "Softplus", "Softmax")
    ],
    *[(op, [positive(3, 4)], {}) for op in ("Log", "Sqrt")],
    *[
        (op, [normal(*a), positive(*b)], {})
        for op in ("Add", "Sub", "Mul", "Div")
        for a, b in [((3, 4), (3, 4)), ((2, 3, 4), (4,)), ((3, 1), (1, 4)), ((4,), (2, 3, 4)), ((1,), (3, 4))]
    ],
    ("Sum", [normal(3, 4), normal(4), normal(3, 1)], {}),
    ("Clip", [normal(4, 5), np.array(-0.5), np.array(0.7)], {"constants": (1, 2)}),
    ("Clip", [normal(4, 5), None, np.array(0.7)], {"constants": (2,)}),
    ("LeakyRelu", [normal(3, 4)], {"alpha": 0.2}),
    ("PRelu", [normal(2, 3, 4), normal(3, 1)], {}),
    ("Where", [np.array([[True, False, True]]), normal(2, 3), normal(3)], {}),
    *[("Softmax", [normal(2, 3, 4)], {"axis": axis}) for axis in (0, 1, -1)],
    *[("LogSoftmax", [normal(2, 3, 4)], {"axis": axis}) for axis in (0, 1, -1)],
    *[
        ("Gemm", [normal(*((4, 3) if ta else (3, 4))), normal(*((5, 4) if tb else (4, 5))), *c], attributes)
        for ta in (0, 1)
        for tb in (0, 1)
        for c in ([], [normal(5)], [normal(3, 1)])
        for attributes in [{"transA": ta, "transB": tb, "alpha": 0.5, "beta": 2.0}]
    ],
    *[
        ("MatMul", [normal(*a), normal(*b)], {})
        for a, b in [
            ((3, 4), (4, 5)),
            ((2, 3, 4), (4, 5)),
            ((2, 3, 4), (2, 4, 5)),
            ((2, 1, 3, 4), (3, 4, 5)),
            ((3, 4), (2, 4, 5)),
            ((4,), (4, 5)),
            ((3, 4), (4,)),
            ((4,), (4,)),
            ((2, 3, 4), (4,)),
            ((4,), (2, 4, 5)),
        ]
    ],
    *[
        ("Conv", [normal(2, 4, *[7] * rank), normal(6, 4 // group, *[3] * rank), *bias], attributes)
        for rank in (1, 2)
        for group in (1, 2)
        for bias in ([], [normal(6)])
        for attributes in [
            {"group": group},
            {"group": group, "strides": [2] * rank, "pads": [1] * rank + [0] * rank},
            {"group": group, "dilations": [2] * rank, "pads": [2] * 2 * rank},
        ]
    ],
    ("Conv", [normal(1, 2, 5, 6, 4), normal(3, 2, 2, 3, 1), normal(3)], {"strides": [2, 1, 3]}),
    (
        "Conv",
        [normal(2, 3, 6, 6), normal(3, 1, 3, 3)],
        {"group": 3, "auto_pad": "SAME_UPPER", "strides": [2, 2]},
    ),
    ("Conv", [normal(2, 3, 6, 6), normal(4, 3, 2, 2)], {"auto_pad": "SAME_LOWER"}),
    ("Conv", [normal(2, 3, 6, 6), normal(4, 3, 1, 1)], {"auto_pad": "VALID"}),
    ("Conv", [normal(2, 3, 5, 6), normal(4, 3, 3, 3)], {"dims": {0: ["N", 3, "H", "W"]}, "strides": [2, 2]}),
    *[
        ("MaxPool", [normal(2, 3, *size)], {"kernel_shape": kernel, **attributes})
        for size, kernel, attributes in [
            ((6, 6), [2, 2], {"strides": [2, 2]}),
            ((7, 9), [2, 3], {"strides": [2, 3]}),
            ((7, 7), [3, 3], {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
            ((7, 7), [2, 2], {"strides": [2, 2], "ceil_mode": 1}),
            ((8,), [3], {"strides": [1]}),
            ((4, 5, 4), [2, 2, 2], {"strides": [2, 2, 2]}),
            ((7, 7), [2, 2], {"dilations": [2, 2]}),
        ]
    ],
    (
        "MaxPool",
        [normal(2, 3, 6, 6)],
        {"kernel_shape": [2, 2], "strides": [2, 2], "dims": {0: ["N", 3, "H", "W"]}},
    ),
    *[
        ("AveragePool", [normal(2, 3, *size)], {"kernel_shape": kernel, **attributes})
        for size, kernel, attributes in [
            ((6, 6), [2, 2], {"strides": [2, 2]}),
            ((7, 9), [2, 3], {"strides": [2, 3]}),
            ((7, 7), [3, 3], {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
            ((7, 7), [3, 3], {"strides": [2, 2], "pads": [1, 0, 1, 2], "count_include_pad": 1}),
            ((7, 7), [2, 2], {"strides": [2, 2], "ceil_mode": 1}),
            ((8,), [3], {"strides": [1]}),
            ((4, 5, 4), [2, 2, 2], {"strides": [2, 1, 2]}),
        ]
    ],
    ("GlobalAveragePool", [normal(2, 3, 4, 5)], {}),
    ("GlobalAveragePool", [normal(2, 3, 4)], {}),
    (
        "BatchNormalization",
        [normal(3, 2, 4, 4), normal(2), normal(2), normal(2), positive(2)],
        {"epsilon": 1e-3},
    ),
    ("BatchNormalization", [normal(5, 3), normal(3), normal(3), normal(3), positive(3)], {}),
    ("Flatten", [normal(2, 3, 4)], {"axis": 2}),
    ("Reshape", [normal(2, 3, 4), ints(4, -1)], {}),
    ("Reshape", [normal(2, 3, 4), ints(0, 12)], {"dims": {0: ["N", 3, 4]}}),
    ("Squeeze", [normal(2, 1, 4), ints(1)], {}),
    ("Unsqueeze", [normal(2, 4), ints(0, 2)], {}),
    ("Transpose", [normal(2, 3, 4)], {"perm": [2, 0, 1]}),
    ("Transpose", [normal(2, 3)], {}),
    ("Expand", [normal(3, 1), ints(2, 3, 4)], {}),
    ("Concat", [normal(2, 3), normal(2, 1), normal(2, 2)], {"axis": 1}),
    ("Concat", [normal(2, 3), normal(4, 3)], {"axis": -2, "dims": {0: ["A", 3], 1: ["B", 3]}}),
    ("Split", [normal(2, 6), ints(1, 3, 2)], {"axis": 1, "outputs": 3}),
    ("Slice", [normal(5, 6), ints(1), ints(4), ints(1)], {}),
    ("Slice", [normal(5, 6), ints(-1, 4), ints(-6, 0), ints(0, 1), ints(-2, -1)], {}),
    ("Slice", [normal(5, 6), ints(0), ints(100), ints(0), ints(2)], {}),
    ("Slice", [normal(5, 6), ints(1), ints(-1), ints(0)], {"dims": {0: ["N", 6]}}),
    ("Pad", [normal(3, 4), ints(1, 0, 2, 3), np.array(0.5)], {"constants": (2,)}),
    ("Pad", [normal(3, 4), ints(-1, 0, 2, -1)], {}),
    ("Pad", [normal(3, 4), ints(1, 2), np.array(0.5), ints(1)], {}),
    *[
        (op, [normal(2, 3, 4), *axes], {"keepdims": keep})
        for op in ("ReduceSum", "ReduceMean")
        for keep in (0, 1)
        for axes in ([], [ints(1)], [ints(0, -1)])
    ],
    ("ReduceSum", [normal(2, 3)], {"noop_with_empty_axes": 1}),
    *[
        ("Gather", [normal(4, 3, 5), np.array(indices, np.int64)], {"axis": axis})
        for axis in (0, 1, -1)
        for indices in ([0, 2, 2], [[1, 0], [2, -1]], 1)
    ],
    ("GatherElements", [normal(3, 4), np.array([[0, 1, 2, 0], [2, 2, 0, 1]], np.int64)], {"axis": 0}),
    ("DepthToSpace", [normal(2, 8, 2, 3)], {"blocksize": 2}),
    ("DepthToSpace", [normal(2, 8, 2, 3)], {"blocksize": 2, "mode": "CRD"}),
    ("SpaceToDepth", [normal(2, 2, 4, 6)], {"blocksize": 2}),
    ("Dropout", [normal(3, 4)], {}),
    *[(op, [normal(3, 4)], {}) for op in ("Elu", "Selu", "HardSigmoid", "HardSwish", "Softsign")],
    *[(op, [normal(3, 4)], {}) for op in ("Mish", "ThresholdedRelu", "Abs", "Reciprocal")],
    *[
        (op, [RNG.uniform(-0.9, 0.9, (3, 4))], {})
        for op in ("Sin", "Cos", "Tan", "Asin", "Acos", "Atan", "Sinh", "Cosh", "Asinh", "Atanh")
    ],
    ("Acosh", [positive(3, 4) + 1], {}),
    *[(op, [normal(3, 4), normal(4), normal(3, 1)], {}) for op in ("Max", "Min", "Mean")],
    ("Pow", [positive(3, 4), normal(4)], {}),
    ("Mod", [normal(3, 4) * 5, positive(4)], {"fmod": 1}),
    *[
        (op, [positive(2, 3, 4), *axes], {"keepdims": keep})
        for op in (
            "ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceSumSquare"
        ).split()
        for keep in (0, 1)
        for axes in ([], [ints(1)], [ints(0, -1)])
    ],
    ("ReduceProd", [np.array([[0.0, 2, 3], [0, 0, 2], [1, 2, 3]]), ints(1)], {}),
    *[
        ("CumSum", [normal(3, 4), np.array(1)], {"exclusive": exclusive, "reverse": reverse})
        for exclusive in (0, 1)
        for reverse in (0, 1)
    ],
    *[("Pad", [normal(3, 4), ints(1, 2, 2, 1)], {"mode": mode}) for mode in ("edge", "reflect")],
    ("Tile", [normal(2, 3), ints(2, 3)], {}),
    ("Trilu", [normal(3, 4)], {"upper": 0}),
    *[
        ("Einsum", [normal(2, 3, 4), normal(2, 4, 5)], {"equation": equation})
        for equation in ("bij,bjk->bik", "...ij,...jk->...ik", "bij,bjk->k", "bij,cjk->ck")
    ],
    *[
        ("ScatterElements", [normal(3, 4), np.array([[0, 2, 0, 1]]), normal(1, 4)], {"reduction": how})
        for how in ("none", "add", "mul", "max", "min")
    ],
    ("LayerNormalization", [normal(2, 3, 4), normal(4), normal(4)], {}),
    ("LayerNormalization", [normal(2, 3, 4), normal(3, 4)], {"axis": 1}),
    ("InstanceNormalization", [normal(2, 3, 4, 5), normal(3), normal(3)], {}),
    ("LpNormalization", [normal(3, 4)], {"axis": 0}),
    ("LpNormalization", [normal(3, 4)], {"axis": 1, "p": 1}),
    ("OneHot", [np.array([0, 2, 1]), np.array(3), normal(2)], {"axis": 0}),
    ("Range", [np.array(0.5), np.array(3.1), np.array(0.5)], {"constants": (1,)}),
    ("Unique", [normal(3, 4)], {"sorted": 1}),
    ("Unique", [np.array([[1.0, 2], [3, 4], [1, 2]])], {"axis": 1}),
    ("Det", [normal(2, 3, 3)], {}),
    ("Det", [np.array([[1.0, 2, 3], [2, 4, 6], [0, 1, 1]])], {}),  # singular: cofactors, no inverse
    ("AffineGrid", [normal(2, 2, 3), ints(2, 3, 4, 5)], {"opset": 20}),
    ("AffineGrid", [normal(2, 3, 4), ints(2, 3, 4, 2, 5)], {"opset": 20, "align_corners": 1}),
    ("Pad", [normal(3, 4), ints(1, 2, 2, 1)], {"mode": "wrap", "opset": 19}),
    *[
        ("Einsum", [normal(3, 4, 4), normal(3, 4)], {"equation": equation})
        for equation in ("bii,bi->b", "bii,bi->bi", "...ii,...i->...")
    ],
    ("Einsum", [normal(1, 3, 4), normal(2, 4, 5)], {"equation": "...ij,...jk->...ik"}),
    ("MaxPool", [normal(1, 2, 5, 6)], {"kernel_shape": [2, 2], "storage_order": 1}),
    *[
        (
            "ConvTranspose",
            [normal(2, 4, 5, 5), normal(4, 3, 3, 3), normal(3 * group)],
            {"group": group, **more},
        )
        for group in (1, 2)
        for more in (
            {},
            {"strides": [2, 2], "pads": [1, 0, 1, 2], "output_padding": [1, 1]},
            {"dilations": [2, 1]},
        )
    ],
]


def _name(case: Case) -> str:
    op, inputs, attributes = case
    shapes = "_".join("x".join(map(str, x.shape)) for x in inputs if x is not None)
    return f"{op}-{shapes}-{'-'.join(f'{k}={v}' for k, v in attributes.items())}"


@pytest.mark.parametrize("case", CASES, ids=[_name(c) for c in CASES])
def test_rule_equals_finite_differences(case: Case) -> None:
    op, inputs, attributes = case
    model, feed = one_node(op, inputs, **attributes)
    assert finite_difference_error(model, feed) < 1e-7


@pytest.mark.parametrize(
    "spelling",
    [
        {"auto_pad": "SAME_UPPER"},
        {"auto_pad": "SAME_LOWER"},
        {"auto_pad": "VALID", "pads": [1, 1, 1, 1]},
        *[{"output_shape": shape} for shape in ([7, 14], [8, 15], [10, 17])],
        {"output_shape": [7, 14], "auto_pad": "SAME_UPPER"},
    ],
    ids=str,
)
def test_written_out_pads_of_conv_transpose_are_those_of_onnxruntime(spelling: dict[str, Any]) -> None:
    arrays = [x.astype(np.float32) for x in (normal(2, 3, 4, 5), normal(3, 2, 3, 4))]
    model, feed = one_node("ConvTranspose", arrays, strides=[2, 3], **spelling)
    plain = Model.from_proto(model)
    normalize(plain)
    assert not {"auto_pad", "output_shape"} & set(next(iter(plain.graph)).attributes)
    np.testing.assert_allclose(runner(plain.to_proto())(feed)["y0"], runner(model)(feed)["y0"], atol=1e-6)


def test_max_roi_pool_equals_finite_differences_of_onnxruntime() -> None:
    """Only float32 runs it, and it is linear between kinks: large steps are exact."""
    x = np.arange(2 * 3 * 8 * 9, dtype=np.float32)
    x = RNG.permutation(x).reshape(2, 3, 8, 9)
    rois = np.array([[0, 1, 1, 6, 5], [1, 0, 0, 8, 7], [1, 2, 3, 4, 12]], np.float32)
    model, feed = one_node("MaxRoiPool", [x, rois], constants=(1,), pooled_shape=[2, 3], spatial_scale=0.7)
    assert finite_difference_error(model, feed, h=2.0**-3) < 1e-4


def test_broadcast_sizes_known_only_at_run_time_are_summed_over() -> None:
    model, feed = one_node("Mul", [normal(1, 4), normal(3, 4)], dims={0: ["A", 4], 1: ["B", 4]})
    assert finite_difference_error(model, feed) < 1e-7


def _with_own_operator() -> onnx.ModelProto:
    """y = Mystery(x a) b, the unknown operator in the branch of an If."""
    return parser.parse_model(
        """<ir_version: 9, opset_import: ["": 18, "own": 1]>
        g (float[2] x, bool c) => (float[2] y) <float[2] a = {1, 2}, float[2] b = {3, 4}> {
          s = Mul(x, a)
          m = If (c) <then_branch = t () => (float[2] u) { u = own.Mystery(s) },
                      else_branch = e () => (float[2] v) { v = Neg(s) }>
          y = Mul(m, b)
        }"""
    )


def test_operator_without_a_rule_is_named_and_what_to_freeze() -> None:
    model = _with_own_operator()
    with pytest.raises(
        UnsupportedOperator, match=r"own::Mystery node .*freezing a \(1 of 2\) avoids it.*@gradient"
    ):
        oa.gradient(model, wrt=["a", "b"])
    with pytest.raises(UnsupportedOperator, match=r"freezing does not avoid it"):
        oa.gradient(model, wrt=["a"])
    assert "b_grad" in oa.gradient(model, wrt=["b"]).output_names()


def test_inspect_lists_operators_without_a_rule_in_branches() -> None:
    found = inspect(Model.from_proto(_with_own_operator())).untrainable
    assert list(found) == ["own::Mystery"] and len(found["own::Mystery"]) == 1


def test_tied_maxima_share_the_gradient() -> None:
    """A valid subgradient: the parts of each window add up to its dy."""
    import onnxruntime as ort

    x = np.zeros((1, 1, 4, 4), np.float32)
    model, feed = one_node("MaxPool", [x], kernel_shape=[2, 2], strides=[2, 2])
    session = ort.InferenceSession(oa.gradient(model).to_proto().SerializeToString())
    dy = np.arange(1, 5, dtype=np.float32).reshape(1, 1, 2, 2)
    _, dx = session.run(None, {**feed, "y0_grad": dy})
    np.testing.assert_array_equal(dx.reshape(2, 2, 2, 2).sum((1, 3)), dy[0, 0])
    np.testing.assert_array_equal(dx[0, 0, :2, :2], np.full((2, 2), 0.25))
