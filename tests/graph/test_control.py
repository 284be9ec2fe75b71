"""Gradients of If, Loop and Scan against finite differences in float64, run by onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from onnx import parser

import onnxaccel as oa
from onnxaccel.errors import UnsupportedOperator
from onnxaccel.graph.model import Model
from onnxaccel.graph.normalize import normalize
from onnxaccel.graph.parameters import trainable
from tests.graph.gradcheck import finite_difference_error

RNG = np.random.default_rng(11)


def normal(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape)


def model(text: str) -> Any:
    return parser.parse_model('<ir_version: 9, opset_import: ["": 18]>\n' + text)


YES, NO = np.array(True), np.array(False)
BRANCHES = """g (double[B,3] x, bool c, double[3] w) => (double[B,3] y, double z) {
  y, z = If (c) <then_branch = t () => (a, b) { a = Mul(x, w)  b = ReduceSum<keepdims = 0>(a) },
                 else_branch = e () => (d, f) { d = Sin(x)  f = ReduceSum<keepdims = 0>(w) }>
}"""
RECURRENT = """g (double[B,3] h0, double[T,B,3] x, double[3,3] w) => (double[B,3] hn, double[T,B,3] ys) {
  hn, ys = Scan<num_scan_inputs = 1, body = b (h, xt) => (h2, y)
    { s = MatMul(h, w)  a = Add(s, xt)  h2 = Tanh(a)  y = Mul(h2, xt) }> (h0, x)
}"""
BACKWARDS = """g (double[B,3] h0, double[B,3,T] x, double[3] w) => (double[B,3] hn, double[B,T,3] ys) {
  hn, ys = Scan<num_scan_inputs = 1, scan_input_axes = [2], scan_input_directions = [1],
    scan_output_axes = [1], scan_output_directions = [1], body = b (h, xt) => (h2, y)
    { s = Mul(h, w)  a = Add(s, xt)  h2 = Tanh(a)  y = Mul(h2, w) }> (h0, x)
}"""
COUNTED = """g (double[B,3] h0, int64 n, bool c, double[3] w) => (double[B,3] hn, double[T,B,3] ys) {
  hn, ys = Loop(n, c, h0) <body = b (int64 i, bool ci, h) => (co, h2, y)
    { s = Mul(h, w)  f = CastLike(i, s)  a = Mul(s, f)  h2 = Sin(a)  y = Exp(h)  co = Identity(ci) }>
}"""
UNTIL_LARGE = """g (double[3] h0, double limit, double[3] w) => (double[3] hn, int64 k) {
  n = Constant<value_int = 100>()
  k0 = Constant<value_int = 0>()
  s0 = ReduceSum<keepdims = 0>(h0)
  c = Less(s0, limit)
  hn, k = Loop(n, c, h0, k0) <body = b (int64 i, bool ci, h, k1) => (co, h2, k2)
    { h2 = Mul(h, w)  s = ReduceSum<keepdims = 0>(h2)  co = Less(s, limit)  one = Constant<value_int = 1>()
      k2 = Add(k1, one) }>
}"""
NESTED = """g (double[T,3] x, double[3] h0, double[3] w) => (double[3] hn) {
  hn = Scan<num_scan_inputs = 1, body = q (h, xt) => (hh)
    { s = ReduceSum<keepdims = 0>(h)  zero = Sub(s, s)  b = Greater(s, zero)
      h2 = If(b) <then_branch = t () => (y) { y = Mul(h, w) }, else_branch = e () => (z) { z = Sin(xt) }>
      hh = Add(h2, xt) }> (h0, x)
}"""
UNUSED_RESULTS = """g (double[B,3] h0, double[T,B,3] x, double[3] w) => (double[B,3] hn) {
  hn, ys = Scan<num_scan_inputs = 1, body = b (h, xt) => (h2, y)
    { h2 = Mul(h, w)  y = Mul(h2, xt) }> (h0, x)
}"""

STEPS = np.array(4)
CASES: list[tuple[str, dict[str, Any]]] = [
    (BRANCHES, {"x": normal(2, 3), "w": normal(3), "c": YES}),
    (BRANCHES, {"x": normal(2, 3), "w": normal(3), "c": NO}),
    (RECURRENT, {"h0": normal(2, 3), "x": normal(4, 2, 3), "w": normal(3, 3)}),
    (RECURRENT, {"h0": normal(1, 3), "x": normal(1, 1, 3), "w": normal(3, 3)}),
    (BACKWARDS, {"h0": normal(2, 3), "x": normal(2, 3, 5), "w": normal(3)}),
    (COUNTED, {"h0": normal(2, 3), "w": normal(3), "n": STEPS, "c": YES}),
    (COUNTED, {"h0": normal(2, 3), "w": normal(3), "n": np.array(1), "c": YES}),
    (UNTIL_LARGE, {"h0": abs(normal(3)), "limit": np.array(50.0), "w": 1.5 + abs(normal(3))}),
    (UNTIL_LARGE, {"h0": 100 + abs(normal(3)), "limit": np.array(50.0), "w": abs(normal(3))}),  # no pass
    (NESTED, {"x": normal(6, 3), "h0": normal(3), "w": normal(3)}),
    (UNUSED_RESULTS, {"h0": normal(2, 3), "x": normal(3, 2, 3), "w": normal(3)}),
]


@pytest.mark.parametrize(("text", "feed"), CASES, ids=[f"{i}" for i in range(len(CASES))])
def test_control_flow(text: str, feed: dict[str, Any]) -> None:
    wrt = [name for name, x in feed.items() if x.dtype.kind == "f" and name != "limit"]
    assert finite_difference_error(model(text), feed, wrt=wrt) < 1e-7


def test_a_loop_whose_values_grow_is_refused() -> None:
    growing = model(
        """g (double[1,3] h0, int64 n, bool c) => (double[M,3] hn) {
          hn = Loop(n, c, h0) <body = b (int64 i, bool ci, h) => (co, double[D,3] h3)
            { h2 = Mul(h, h)  h3 = Concat<axis = 0>(h2, h2)  co = Identity(ci) }>
        }"""
    )
    with pytest.raises(UnsupportedOperator, match=r"Loop node .*changes its shape from pass to pass"):
        oa.gradient(growing)


def test_random_numbers_within_a_loop_are_refused() -> None:
    noisy = model(
        """g (double[3] h0, int64 n, bool c) => (double[3] hn) {
          hn = Loop(n, c, h0) <body = b (int64 i, bool ci, double[3] h) => (co, double[3] h2)
            { r = RandomNormalLike(h)  h2 = Mul(h, r)  co = Identity(ci) }>
        }"""
    )
    with pytest.raises(UnsupportedOperator, match=r"RandomNormalLike node .*random"):
        oa.gradient(noisy)


def test_weights_inside_a_body_are_found_and_trained() -> None:
    found = Model.from_proto(
        model(
            """g (float[3,2] x, float[B,3] h0) => (float[B,3] hn) {
              hn = Scan<num_scan_inputs = 1,
                body = b (h, xt) => (h2) <float[3,3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9}>
                { h2 = MatMul(h, w) }> (h0, x)
            }"""
        )
    )
    normalize(found)
    assert [value.name for value in trainable(found)] == ["w"]
    assert "w_grad" in oa.gradient(found, wrt=["w"]).output_names()


def test_training_through_torch_cond_follows_torch() -> None:
    class Branching(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.yes, self.no = (torch.nn.Linear(*n) for n in ((8, 16), (16, 3), (16, 3)))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = torch.tanh(self.first(x))
            return torch.cond(h.sum() > 0, lambda h: self.yes(h), lambda h: self.no(h) * 2, (h,))

    torch.manual_seed(0)
    module = Branching()
    dynamic = ({0: torch.export.Dim("batch")},)
    exported = torch.onnx.export(
        module, (torch.randn(6, 8),), dynamo=True, opset_version=18, dynamic_shapes=dynamic, verbose=False
    )
    assert exported is not None
    trainer = oa.Trainer(Model.from_proto(exported.model_proto), optimizer=oa.optimizers.SGD(0.1))
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    taken = set()
    for _ in range(8):
        x, labels = normal(6, 8).astype(np.float32), RNG.integers(0, 3, 6)
        taken.add(bool(torch.tanh(module.first(torch.from_numpy(x))).sum() > 0))
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(module(torch.from_numpy(x)), torch.from_numpy(labels))
        loss.backward()
        optimizer.step()
        assert abs(trainer.step(x, labels) - loss.item()) < 1e-5
    assert taken == {True, False}


def test_second_derivative_through_a_scan() -> None:
    feed = {"h0": normal(2, 3), "x": normal(3, 2, 3), "w": normal(3, 3)}
    first = oa.gradient(model(RECURRENT), wrt=["w"]).to_proto()
    del first.graph.output[:-1]
    seeds = {"hn_grad": normal(2, 3), "ys_grad": normal(3, 2, 3)}
    assert finite_difference_error(first, feed | seeds, wrt=["h0", "x", "hn_grad"]) < 1e-7
