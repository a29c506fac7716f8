"""ONNX → engine, by TensorRT or TensorRT-RTX, or by trtexec with the scripts that are written for it."""
