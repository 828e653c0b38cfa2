"""A network and faces to a judged INT8 engine, stage by stage."""

from fr_edge import InputSpec, build_engine, calibrate, export_onnx, open_faces, verify
from fr_edge.runtime.report.report import write_report

contract = InputSpec()  # RGB, 112x112, (x - 127.5) / 127.5
export_onnx("backbone.onnx", "python.bundle", spec=contract)
calibrate("python.bundle", open_faces("faces/calibration"))
built = build_engine("python.bundle", "int8")
print(built.engine, built.layers)
result = verify("python.bundle", "int8", faces=open_faces("faces/judging"))
for gate in result.gates:
    print(gate)
print(result.verdict)
print(write_report("python.bundle"))
