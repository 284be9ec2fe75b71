"""The shared helpers: bounded reads, paths that stay, typed JSON, TensorFlow graphs that only compute."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from onnxaccel import bounds
from onnxaccel.data import open_dataset
from onnxaccel.errors import DataError
from onnxaccel.graph.model import Metadata, Preprocessing, SessionSettings
from onnxaccel.records import Malformed, record_of


def test_only_regular_files_of_bounded_size_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    os.symlink(tmp_path / "file", tmp_path / "link")
    os.symlink(tmp_path / "loop", tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    assert bounds.read(tmp_path / "file", DataError, 5) == b"12345"
    assert bounds.read(tmp_path / "link", DataError) == b"12345", "what the user names may be a link"
    for name, most, message in (
        ("file", 4, "5 bytes are more"),
        ("pipe", 9, "no regular file"),
        ("loop", 9, "no such file|cannot be read"),
        ("absent", 9, "no such file"),
        ("", 9, "no regular file"),
        ("null\0byte", 9, "no such file|cannot be read"),
    ):
        with pytest.raises(DataError, match=message):
            bounds.read(tmp_path / name, DataError, most)


def test_links_may_not_leave_their_folder(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "below").mkdir(parents=True)
    (folder / "below/file").touch()
    os.symlink("below/file", folder / "inside")
    assert [path.name for path in bounds.entries(folder, DataError)] == ["below", "inside"]
    bounds.check_tree(folder, DataError)
    os.symlink("../../outside", folder / "below/leaves")
    assert bounds.entries(folder, DataError)
    with pytest.raises(DataError, match="below/leaves: refused"):
        bounds.check_tree(folder, DataError)


def test_memory_is_asked_for_before_it_is_taken() -> None:
    bounds.fits(2**20, "a batch", DataError)
    with pytest.raises(DataError, match="a batch would take"):
        bounds.fits(2**60, "a batch", DataError)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("~nobody-of-that-name/data", "no such file or folder"),
        ("a" * 5000, "no such file or folder"),
        ("null\0byte", "no such file or folder"),
        ("sklearn:digits#" + "1" * 5000 + ":", "picks nothing"),
        ("sklearn:../../etc/passwd", "no such data set"),
    ],
)
def test_data_that_cannot_be_named(spec: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_dataset(spec)


METADATA = Metadata(
    preprocessing=Preprocessing(mean=[1.0, 2.5], resize=(3, 4)),
    session=SessionSettings("cuda", {"use_tf32": "1"}),
    multipliers={"w": (1.0, 0.0)},
    batch_sizes={"train": 64},
)


def test_metadata_survives_json() -> None:
    assert record_of(Metadata, json.dumps(asdict(METADATA))) == METADATA
    assert record_of(Metadata, '{"of a newer version": 1}') == Metadata()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ([], r"the document is \[\], not an object"),
        ({"trainable": ["w", 3]}, r"trainable\[1\] is 3, not str"),
        ({"preprocessing": {"mean": "abc"}}, "preprocessing.mean is 'abc', not list"),
        ({"preprocessing": {"mean_image": {"shape": [1]}}}, "preprocessing.mean_image"),
        ({"session": {"options": {"a": 1}}}, r"session.options\['a'\] is 1, not str"),
        ({"session": {"spinning": 1}}, "session.spinning is 1, not bool"),
        ({"multipliers": {"w": [1.0]}}, r"multipliers\['w'\] is \[1.0\], not"),
        ({"max_relative_error": 10**400}, "max_relative_error is 1000"),
    ],
)
def test_json_of_another_form_is_named(change: Any, message: str) -> None:
    with pytest.raises(Malformed, match=message):
        record_of(Metadata, json.dumps(change))


def test_operators_that_touch_files_are_all_known() -> None:
    """Of TensorFlow's own list of operators, those whose names tell that they do more than compute."""
    pytest.importorskip("tensorflow")
    from tensorflow.python.framework import op_def_registry

    from onnxaccel.converters.tensorflow.harm import _HARMFUL, _RESTORING, _SAVING

    names = """
    ReadFile WriteFile MatchingFiles WholeFileReaderV2 TextLineReaderV2 TFRecordReaderV2 LMDBReader
    FixedLengthRecordReaderV2 TFRecordDataset TextLineDataset CSVDataset SqlDataset LMDBDataset
    SaveDatasetV2 LoadDataset SnapshotDatasetV2 CacheDatasetV2 DatasetToTFRecord PyFunc EagerPyFunc
    PyFuncStateless RpcCall RemoteCall CreateSummaryFileWriter CreateSummaryDbWriter WriteSummary
    ImportEvent DebugIdentityV3 DumpTensor ImmutableConst LoadAndRemapMatrix GenerateVocabRemapping
    DecodeProtoV2 EncodeProto FileSystemSetConfiguration SaveV2 SaveSlices MergeV2Checkpoints RestoreV2
    RestoreSlice GeneratorDataset DataServiceDatasetV4
    """.split()
    for name in names:
        assert op_def_registry.get(name) is not None, f"{name} is no operator of this TensorFlow"
        assert any(p.search(name) for p in (_HARMFUL, _SAVING, _RESTORING)), name
    harmless = """
    Conv2D MatMul ReadVariableOp AssignVariableOp VarHandleOp Placeholder TensorArrayWriteV3 While
    StatefulPartitionedCall TensorListFromTensor CheckNumerics ScalarSummary HashTableV2 RandomUniform
    """.split()
    assert not [n for n in harmless if any(p.search(n) for p in (_HARMFUL, _SAVING, _RESTORING))]
