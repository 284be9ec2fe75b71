"""The reference models, each defined in TensorFlow, PyTorch and Caffe."""
