"""Runs bundles: pictures and prompts in, answers out. Needs numpy and ONNX Runtime, never torch."""
