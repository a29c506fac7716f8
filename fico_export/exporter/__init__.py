"""torch → ONNX: traces the graphs, binds the weights, checks the result, writes a bundle."""
