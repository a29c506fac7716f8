"""Logs of other tools, read: trtexec 8.6, 10.x and 11.x, and ONNX Runtime's profiler.

Formats by NVIDIA's samples/common/sampleReporting.cpp and the migration page of IEngineInspector (10.x to 11.x).
"""
