"""trtexec's files as each of its versions writes them, made from the published schema: names of nodes are our exporter's."""

import json

NODES = {
    "patch embedding": "vision_tower.embeddings/Conv_3",
    "vision tower": "vision_tower.encoder.layers.3.self_attn.q_proj/MatMul_98",
    "reducer": "reduce.layer_11/TopK_512",
    "projector": "multi_modal_projector.linear_1/MatMul_840",
}


def times(version, runs=3, **changes):
    """--exportTimes; before 8.6 with the end-to-end time."""
    rows = []
    for i in range(runs):
        row = {
            "startEnqMs": 10.0 * i, "endEnqMs": 10.0 * i + 0.5, "startH2dMs": 10.0 * i, "endH2dMs": 10.0 * i + 0.25,
            "startComputeMs": 10.0 * i + 1, "endComputeMs": 10.0 * i + 6 + i, "startD2hMs": 10.0 * i + 7,
            "endD2hMs": 10.0 * i + 7.125, "h2dMs": 0.25, "computeMs": 5.0 + i, "d2hMs": 0.125, "latencyMs": 5.375 + i,
        }  # fmt: skip
        rows.append(row | ({"endToEndMs": 9.0} if version == "8.2" else {}) | changes)
    return "[\n  " + "\n, ".join(json.dumps(row) for row in rows) + "\n]\n"


def profile(version, layers, count=200):
    """--exportProfile: `layers` is name → mean in ms; before 8.5 without medians."""
    total = sum(layers.values())
    lines = [f'[\n  {{ "count" : {count} }}']
    for name, ms in layers.items():
        median = "" if version == "8.2" else f', "medianMs" : {ms}'
        lines.append(
            f', {{ "name" : "{name}", "timeMs" : {ms * count}, "averageMs" : {ms}{median}, "percentage" : {ms / total * 100} }}'
        )
    return "\n".join([*lines, "]\n"])


def layer_info(version, layers, tensors):
    """--exportLayerInfo, detailed: `layers` is name → ONNX nodes, `tensors` name → shape; 11 has another vocabulary."""

    def tensor(name, shape):
        new = {"Format": "Row major linear FP16 format (kLINEAR)", "Datatype": "Half"}
        old = {"Format/Datatype": "Row major linear FP16 format"}
        return {"Name": name, "Location": "Device", "Dimensions": shape} | (new if version == "11.1" else old)

    listed = [
        {
            "Name": name,
            "LayerType": "kgen",
            "Inputs": [tensor("a", [1, 64, 64])],
            "Outputs": [tensor("b", [1, 64, 64])],
            "TacticName": "_gemm_mha_v2",
            "StreamId": 0,
            "Metadata": "\x1f".join(f"[ONNX Layer: {node}]" for node in nodes),
        }
        for name, nodes in layers.items()
    ]
    if version == "11.1":
        ends = {
            "I/O Tensors": [
                {"Name": n, "IOMode": "Input", "DataType": "Float", "Dimensions": s, "Location": "Device",
                 "IsShapeInferenceIO": False, "ProfileInfo": [{"Format": "Row major linear FP32 format (kLINEAR)"}]}
                for n, s in tensors.items()
            ]
        }  # fmt: skip
    else:
        ends = {"Bindings": list(tensors)}
    return json.dumps({"Layers": listed} | ends, indent=1)


def names_only(layers, tensors):
    """--exportLayerInfo without detailed verbosity: names, each on a line of its own."""
    body = "\n,".join(json.dumps(name) for name in layers)
    return f'{{"Layers": [{body}\n],\n"Bindings": [{", ".join(json.dumps(t) for t in tensors)}]}}\n'


def plain(version, runs=200, table=None):
    """The log of a run, of which trtexec of that version writes these lines; `table` is the rows of --dumpProfile."""
    digits = {"8.6.1": "8601", "10.3.0": "100300", "11.1.0": "110100"}[version]
    build = " [b26]" if version != "8.6.1" else ""
    flags = "" if version.startswith("11") else " --useCudaGraph --useSpinWait --noDataTransfers"
    command = f"trtexec --loadEngine=vision_encoder.engine{flags} --exportTimes=times.json"
    stamp = "[11/20/2026-10:47:59] "

    def line(title, base):
        return (
            f"{stamp}[I] {title}: min = {base} ms, max = {base * 2} ms, mean = {base * 1.25} ms, median = {base * 1.5} ms, "
            f"percentile(90%) = {base * 1.75} ms, percentile(95%) = {base * 1.8} ms, percentile(99%) = {base * 1.9} ms"
        )

    lines = [
        f"&&&& RUNNING TensorRT.trtexec [TensorRT v{digits}]{build} # {command}",
        f"{stamp}[I] === Device Information ===",
        f"{stamp}[I] Selected Device: Orin",
        f"{stamp}[I] Compute Capability: 8.7",
        f"{stamp}[I] Timing trace has {runs} queries over 3.0 s",
        f"{stamp}[I] ",
        f"{stamp}[I] === Performance summary ===",
        f"{stamp}[I] Throughput: 130.298 qps",
        line("Latency", 5.5),
        line("Enqueue Time", 0.5),
        line("H2D Latency", 0.25),
        line("GPU Compute Time", 5.0),
        line("D2H Latency", 0.125),
        f"{stamp}[I] Total Host Walltime: 3.00082 s",
        f"{stamp}[W] * GPU compute time is unstable, with coefficient of variance = 5.55763%.",
    ]
    if table:
        lines += [f"{stamp}[I] ", f"{stamp}[I] === Profile ({runs} iterations ) ==="]
        lines.append(f"{stamp}[I]    Time(ms)     Avg.(ms)   Median(ms)   Time(%)   Layer")
        lines += [
            f"{stamp}[I] {ms * runs:>11.2f}{ms:>13.4f}{ms:>13.4f}{9.9:>10.1f}   {name}"
            for name, ms in table.items()
        ]
        lines += [f"{stamp}[I]     1000.00       5.0000       5.0000     100.0   Total", f"{stamp}[I] "]
    return "\n".join([*lines, f"&&&& PASSED TensorRT.trtexec [TensorRT v{digits}] # {command}"]) + "\n"
