"""Fillers draw from the distributions that a real Caffe draws from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from onnxaccel.converters.caffe.fillers import filled
from onnxaccel.converters.caffe.net import Layer, read_net
from onnxaccel.errors import ConversionError
from tests.converters.real_caffe import Job, caffe_train, needs_caffe

DENSE = (
    'type: "InnerProduct" inner_product_param {{ num_output: 300 '
    "weight_filler {{ {} }} bias_filler {{ {} }} }}"
)
CONV = 'type: "Convolution" convolution_param {{ num_output: 60 kernel_size: 5 weight_filler {{ {} }} }}'
DECONV = (
    'type: "Deconvolution" convolution_param {{ num_output: 3 group: {} kernel_size: {} '
    'weight_filler {{ type: "bilinear" }} }}'
)

DRAWN = {
    "uniform": DENSE.format('type: "uniform" min: -0.3 max: 0.1', 'type: "uniform"'),
    "gaussian": DENSE.format('type: "gaussian" mean: 0.2 std: 0.05', 'type: "gaussian" std: 3'),
    "gaussian sparse": DENSE.format('type: "gaussian" std: 0.1 sparse: 30', 'type: "gaussian"'),
    "positive_unitball": DENSE.format('type: "positive_unitball"', 'type: "positive_unitball"'),
    "xavier": DENSE.format('type: "xavier"', 'type: "xavier"'),
    "xavier convolution": CONV.format('type: "xavier"'),
    "xavier fan out": CONV.format('type: "xavier" variance_norm: FAN_OUT'),
    "xavier average": CONV.format('type: "xavier" variance_norm: AVERAGE'),
    "msra": CONV.format('type: "msra"'),
    "msra fan out": CONV.format('type: "msra" variance_norm: FAN_OUT'),
    "msra average": DENSE.format('type: "msra" variance_norm: AVERAGE', 'type: "msra"'),
}
EXACT = {
    "constant": DENSE.format('type: "constant" value: 0.7', "value: -2"),
    "none stated": 'type: "InnerProduct" inner_product_param { num_output: 4 }',
    **{f"bilinear {k}": DECONV.format(3, k) for k in (2, 3, 4, 5, 8)},
    "bilinear in one group": DECONV.format(1, 4),
    "scale": 'type: "Scale" scale_param { bias_term: true bias_filler { value: 3 } }',
    "prelu": 'type: "PReLU"',
    "bias": 'type: "Bias" bias_param { filler { value: 2 } }',
    "batch norm": 'type: "BatchNorm"',
    "transposed": 'type: "InnerProduct" inner_product_param { num_output: 4 transpose: true }',
}


@needs_caffe
def test_fillers_draw_as_a_real_caffe_does(tmp_path: Path) -> None:
    """Two-sample Kolmogorov-Smirnov tests of each blob; what is not drawn is equal."""
    layers = "".join(
        f'layer {{ name: "{name}" bottom: "data" top: "{name}" {body} }}\n'
        for name, body in (DRAWN | EXACT).items()
    )
    prototxt, solver = tmp_path / "net.prototxt", tmp_path / "solver.prototxt"
    prototxt.write_text(
        'layer { name: "data" type: "Input" top: "data" input_param { shape { '
        "dim: 1 dim: 3 dim: 8 dim: 8 } } }\n" + layers
    )
    solver.write_text(f'net: "{prototxt}" base_lr: 1 max_iter: 1 lr_policy: "fixed" random_seed: 1')
    (theirs,) = caffe_train(Job(solver))
    fill = filled(seed=0)
    net = {layer.name: layer for layer in read_net(prototxt)}
    compared = 0
    for key, expected in theirs.items():
        name, _, index = key.rpartition("/")
        if name not in net:
            continue
        ours = fill(net[name], int(index), expected.shape)
        assert ours.dtype == np.float32 and ours.shape == expected.shape
        compared += 1
        if name in EXACT or (not DRAWN[name].count("bias_filler") and index == "1"):
            np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-7, err_msg=key)
            continue
        assert stats.ks_2samp(ours.ravel(), expected.ravel()).pvalue > 1e-3, key
        if "xavier" in name or "uniform" in name:  # the bounds are the distribution's own
            tolerance = 20 * np.ptp(expected) / expected.size
            assert abs(ours.min() - expected.min()) < tolerance, key
            assert abs(ours.max() - expected.max()) < tolerance, key
        if "sparse" in name and index == "0":
            shares = [np.count_nonzero(blob) / blob.size for blob in (ours, expected)]
            assert shares == pytest.approx([0.1, 0.1], abs=0.01)
        if name == "positive_unitball":
            np.testing.assert_allclose(ours.reshape(len(ours), -1).sum(1), 1, rtol=1e-5)
    assert compared == sum(2 for _ in DRAWN) + 2 * (len(EXACT) - 3) + 1 + 1 + 3  # PReLU, Bias, BatchNorm


def test_what_is_drawn_follows_from_seed_and_layer(tmp_path: Path) -> None:
    xavier = 'type: "xavier"'
    text = f'layer {{ name: "NAME" bottom: "x" top: "y" {DENSE.format(xavier, xavier)} }}'
    layers: list[Layer] = []
    for name in ("a", "b"):
        (tmp_path / name).write_text(text.replace("NAME", name))
        layers += read_net(tmp_path / name)
    a, again, other_seed, b = (
        filled(seed)(layer, 0, (3, 4))
        for seed, layer in ((1, layers[0]), (1, layers[0]), (2, layers[0]), (1, layers[1]))
    )
    assert np.array_equal(a, again)
    assert not np.array_equal(a, other_seed) and not np.array_equal(a, b)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('type: "orthogonal"', "unknown filler 'orthogonal'; choose one of bilinear, constant"),
        ('type: "bilinear"', "filler 'bilinear': needs a square kernel"),
        ('type: "gaussian" std: -1', "std must not be negative, it is -1"),
        ('type: "uniform" min: 2 max: 1', "filler 'uniform'"),
    ],
)
def test_impossible_fillers_are_named(body: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "net.prototxt"
    path.write_text(f'layer {{ name: "l" bottom: "x" top: "y" {DENSE.format(body, body)} }}')
    (layer,) = read_net(path)
    with pytest.raises(ConversionError, match=message) as caught:
        filled(0)(layer, 0, (3, 4))
    assert "layer 'l'" in str(caught.value)
