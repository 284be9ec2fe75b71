"""What `import onnxaccel` and the command line load, and how the command line ends."""

from __future__ import annotations

import subprocess
import sys

import onnxaccel

HEAVY = ("tensorflow", "torch", "keras", "tf2onnx", "cv2", "onnxruntime", "onnx", "onnx_ir")


def _loaded(code: str) -> set[str]:
    program = f"{code}\nimport sys\nprint(' '.join(m for m in {HEAVY!r} if m in sys.modules))"
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    return set(out.splitlines()[-1].split()) if out.strip() else set()


def test_import_loads_no_framework() -> None:
    assert _loaded("import onnxaccel") == set()


def test_help_loads_no_framework() -> None:
    show = "from onnxaccel.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass"
    assert _loaded(show) == set()


def test_running_a_model_loads_no_framework() -> None:
    assert not _loaded("import onnxaccel as oa\noa.Trainer, oa.evaluate, oa.gradient, oa.convert") & {
        "tensorflow",
        "torch",
        "keras",
        "cv2",
    }


def test_compare_is_a_function_and_a_package() -> None:
    code = "import onnxaccel as oa\nimport onnxaccel.compare.results\nassert callable(oa.compare)"
    assert _loaded(code) == set()


def test_public_names() -> None:
    assert sorted(onnxaccel.__all__) == [
        "AccelError",
        "Augmentation",
        "Model",
        "Trainer",
        "UnsupportedOperator",
        "__version__",
        "compare",
        "convert",
        "evaluate",
        "gradient",
        "losses",
        "optimizers",
        "schedules",
    ]
    for name in onnxaccel.__all__:
        assert getattr(onnxaccel, name) is not None
