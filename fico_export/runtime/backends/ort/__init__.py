"""What the backends of ONNX Runtime have alike: sessions, the decoder with its KV caches, memory."""
