"""The readers, one file per format; importing this package registers them."""

from onnxaccel.data.readers import cifar, folder, hdf5, idx, leveldb, lists, lmdb, npz, sklearn, table

__all__ = ["cifar", "folder", "hdf5", "idx", "leveldb", "lists", "lmdb", "npz", "sklearn", "table"]
