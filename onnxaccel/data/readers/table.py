"""Tables of numbers: csv, and parquet; the target is column label, target, class or y, else the last."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxaccel.bounds import fits
from onnxaccel.data.dataset import Arrays, Dataset
from onnxaccel.data.spec import reader
from onnxaccel.errors import DataError, MissingDependency

_TARGETS = ("label", "target", "class", "y")


@reader("csv")
def comma_separated(path: Path, part: str | None) -> Dataset:
    """Comma-separated numbers under one header line."""
    rows: list[npt.NDArray[np.float64]] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file)
            header = next(lines, [])
            for line in lines:
                if line:
                    if len(line) != len(header):
                        raise DataError(
                            f"{path}: line {lines.line_num} has {len(line)} values, the header {len(header)}"
                        )
                    rows.append(np.array(line, np.float64))
    except (OSError, UnicodeDecodeError, csv.Error, ValueError) as error:
        raise DataError(f"{path}: not a table of numbers, line {lines.line_num} ({error})") from None
    if all(_is_number(name) for name in header):
        raise DataError(f"{path}: its first line must name the columns, and holds numbers")
    return _table(path, part, header, np.array(rows).reshape(len(rows), len(header)))


@reader("parquet")
def parquet(path: Path, part: str | None) -> Dataset:
    """Parquet columns of numbers."""
    try:
        from pyarrow import ArrowException
        from pyarrow import parquet as pq
    except ImportError:
        raise MissingDependency("pyarrow", "data", f"read {path}") from None
    try:
        file = pq.ParquetFile(path)
        fits(file.metadata.num_rows * file.metadata.num_columns * 8, f"{path}: unpacked, it", DataError)
        columns: Any = file.read()
        values = [np.asarray(column.to_numpy(), np.float64) for column in columns.columns]
    except (OSError, ValueError, TypeError, MemoryError, ArrowException) as error:
        raise DataError(f"{path}: not a table of numbers ({' '.join(str(error).split())})") from None
    return _table(path, part, columns.column_names, np.stack(values, axis=1))


def _table(path: Path, part: str | None, header: list[str], values: npt.NDArray[np.float64]) -> Dataset:
    if part is not None:
        raise DataError(f"{path}: a table has no parts; pick a range, such as {path}#0:1000")
    if len(header) < 2:
        raise DataError(f"{path}: needs one target column and at least one more")
    names = [name.strip().lower() for name in header]
    target = next((names.index(name) for name in _TARGETS if name in names), len(names) - 1)
    y = values[:, target]
    if not np.isfinite(values).all():
        row, column = np.argwhere(~np.isfinite(values))[0]
        raise DataError(f"{path}: row {row} has no number in column {header[column]!r}")
    classes = bool(np.all(y == np.round(y)) and y.min(initial=0) >= 0 and y.max(initial=0) < 2**31)
    x = np.delete(values, target, axis=1).astype(np.float32)
    return Arrays(str(path), x, y.astype(np.int64) if classes else y.astype(np.float32))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
