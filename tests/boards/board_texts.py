"""Lines of tegrastats and trtexec as boards printed them."""

# Recorded on boards and published: the first three in a Prometheus exporter's tests, ORIN_NANO in
# henrygd/beszel's agent/gpu_test.go, AGX_ORIN_JETPACK_7 in rbonghi/jetson_stats' tests, ORIN_NX and
# AGX_ORIN_JETPACK_6 in those of DataDog/datadog-agent's Jetson check, THOR's two (L4T R39) in those of
# a telemetry tool's tegrastats_telemetry.
NANO_JETPACK_4 = (
    "RAM 1923/3964MB (lfb 2x2MB) SWAP 191/1982MB (cached 6MB) IRAM 0/252kB(lfb 252kB) "
    "CPU [5%@1224,4%@1224,3%@1224,6%@1224] EMC_FREQ 0%@1600 GR3D_FREQ 0%@76 APE 25 PLL@37C CPU@40C "
    "PMIC@50C GPU@40C AO@45C thermal@40C POM_5V_IN 1750/1628 POM_5V_GPU 0/0 POM_5V_CPU 366/406"
)
XAVIER_NX_JETPACK_4 = (
    "RAM 5246/7771MB (lfb 7x4MB) SWAP 983/20269MB (cached 280MB) "
    "CPU [47%@1420,23%@1420,32%@1420,22%@1420,31%@1420,96%@1420] EMC_FREQ 2%@1600 GR3D_FREQ 0%@1109 "
    "APE 150 MTS fg 1% bg 9% AO@29C GPU@31.5C PMIC@100C AUX@30C CPU@33.5C thermal@31.35C "
    "VDD_IN 6140/5510 VDD_CPU_GPU_CV 2706/2119 VDD_SOC 1074/1051"
)
XAVIER_NX_JETPACK_5 = (
    "07-09-2024 13:31:31 RAM 3168/6851MB (lfb 2x4MB) SWAP 161/3426MB (cached 0MB) "
    "CPU [23%@1397,17%@1192,16%@1190,13%@1190,23%@1190,10%@1190] EMC_FREQ 2%@204 GR3D_FREQ 0%@[114] "
    "VIC_FREQ 115 APE 150 AUX@45C CPU@46.5C thermal@45.6C AO@45C GPU@45.5C PMIC@50C "
    "VDD_IN 2763mW/2846mW VDD_CPU_GPU_CV 650mW/670mW VDD_SOC 650mW/711mW"
)
ORIN_NANO_JETPACK_6 = (
    "06-18-2025 11:25:24 RAM 3452/7620MB (lfb 25x4MB) SWAP 1518/16384MB (cached 174MB) "
    "CPU [1%@1420,2%@1420,0%@1420,2%@1420,2%@729,1%@729] GR3D_FREQ 0% cpu@50.031C soc2@49.031C "
    "soc0@50C gpu@49.031C tj@50.25C soc1@50.25C VDD_IN 4824mW/4824mW VDD_CPU_GPU_CV 518mW/518mW "
    "VDD_SOC 1475mW/1475mW"
)
AGX_ORIN_JETPACK_7 = (
    "07-25-2026 09:08:28 RAM 20642/62817MB (lfb 1x2MB) CPU [23%@2201,10%@2201,4%@2201,14%@2201,"
    "30%@2201,18%@2201,10%@2201,10%@2201,33%@2201,7%@2201,5%@2201,27%@2201] EMC_FREQ 3%@3199 "
    "GR3D_FREQ 12%@[1300,1300] NVENC0 off NVDEC0 off NVJPG0 off NVJPG1 off VIC off OFA off "
    "NVDLA0 off NVDLA1 off PVA0_FREQ off APE 174 cpu@52.968C/52.968C soc2@48.406C/48.406C "
    "soc0@49.531C/49.531C gpu@47.625C/47.625C VDD_GPU_SOC 5139mW/5139mW/5139mW "
    "VDD_CPU_CV 3268mW/3268mW/3268mW VIN_SYS_5V0 5500mW/5500mW/5500mW"
)

ORIN_NX_JETPACK_5 = (
    "RAM 6334/15388MB (lfb 1770x4MB) SWAP 491/7694MB (cached 0MB) "
    "CPU [6%@729,9%@729,5%@729,16%@729,off,off,off,off] EMC_FREQ 0%@2133 GR3D_FREQ 0%@611 "
    "VIC_FREQ 729 APE 174 CV0@45.812C CPU@47.937C SOC2@46.093C SOC0@46.968C CV1@46.406C "
    "GPU@45.875C tj@48.875C SOC1@48.875C CV2@45.75C VDD_IN 5299mW/5299mW "
    "VDD_CPU_GPU_CV 773mW/773mW VDD_SOC 1424mW/1424mW"
)
AGX_ORIN_JETPACK_6 = (
    "RAM 29114/30697MB (lfb 3x4MB)    SWAP 4915/15348MB (cached 1MB) "
    "CPU [3%@729,4%@729,0%@729,1%@729,0%@2201,100%@2201,1%@2201,0%@2201,100%@2201,0%@2201,0%@2201,"
    "0%@2201] EMC_FREQ 1%@2133 GR3D_FREQ 0%@[305,305] NVENC      off  NVDEC    off NVJPG off "
    "NVJPG1    off         VIC        off          OFA           off          NVDLA0    off       "
    "NVDLA1     off          PVA0_FREQ off         APE           174        cpu@53.062C "
    "soc2@48.25C soc0@48.843C  gpu@47.812C tj@53.062C soc1@48.968C    VDD_GPU_SOC 3205mW/3205mW "
    "VDD_CPU_CV 4405mW/4405mW VIN_SYS_5V0 4767mW/4767mW"
)
THOR_JETPACK_7 = (
    "08-08-2026 21:00:39 RAM 8353/125749MB (lfb 31x4MB) CPU [90%@2601,75%@2601,off,7%@2601] "
    "EMC_FREQ 34%@4266 GR3D_FREQ 87%@[1574,1574,1574] NVENC0_FREQ @1691 VIC off "
    "cpu@58.25C/61.75C tj@66.625C/66.625C gpu@56.937C/66.625C soc012@55.375C/58.781C "
    "soc345@55.812C/60.031C VDD_GPU 37939mW/8660mW/37939mW "
    "VDD_CPU_SOC_MSS 30059mW/12281mW/30059mW VIN_SYS_5V0 15486mW/7424mW/15486mW "
    "VIN 124486mW/36487mW/124486mW FUTURE_TOKEN value"
)
THOR_AT_REST = (
    "08-08-2026 20:58:23 RAM 3429/125749MB (lfb 120x4MB) CPU [0%,5%,off]@2601 EMC_FREQ @4266 "
    "GR3D_FREQ @[1574,1574,1574] cpu@49.75C/49.75C tj@51.218C/51.218C gpu@51.218C/51.218C "
    "VDD_GPU 6330mW/6330mW/6330mW VIN 28906mW/14453mW/28906mW"
)

# Of a public log of TensorRT 8.4's trtexec, and one line of 10's with its own percentiles.
TRTEXEC_8 = """\
[05/09/2022-06:27:25] [I] Throughput: 476.66 qps
[05/09/2022-06:27:25] [I] Latency: min = 2.05615 ms, max = 2.59482 ms, mean = 2.09467 ms, median = 2.08276 ms, percentile(99%) = 2.58971 ms
[05/09/2022-06:27:25] [I] End-to-End Host Latency: min = 3 ms, max = 3 ms, mean = 3 ms, median = 3 ms, percentile(99%) = 3 ms
[05/09/2022-06:27:25] [I] Enqueue Time: min = 0.0024 ms, max = 0.02 ms, mean = 0.007 ms, median = 0.00634766 ms, percentile(99%) = 0.01 ms
[05/09/2022-06:27:25] [I] H2D Latency: min = 0 ms, max = 0 ms, mean = 0 ms, median = 0 ms, percentile(99%) = 0 ms
[05/09/2022-06:27:25] [I] GPU Compute Time: min = 2.05615 ms, max = 2.59482 ms, mean = 2.09467 ms, median = 2.08 ms, percentile(90%) = 2.1 ms
[05/09/2022-06:27:25] [I] Total GPU Compute Time: 2.99956 s
"""
TRTEXEC_10 = """\
&&&& RUNNING TensorRT.trtexec [TensorRT v100300] [b26] # trtexec --loadEngine=a.plan
[09/02/2026-10:00:01] [I] === Performance summary ===
[09/02/2026-10:00:01] [I] Throughput: 480.1 qps
[09/02/2026-10:00:01] [I] Latency: min = 2.1 ms, max = 2.6 ms, mean = 2.2 ms, median = 2.2 ms, percentile(90%) = 2.3 ms, percentile(95%) = 2.4 ms, percentile(99%) = 2.5 ms
[09/02/2026-10:00:01] [I] Enqueue Time: min = 0.01 ms, max = 0.1 ms, mean = 0.02 ms, median = 0.02 ms, percentile(90%) = 0.03 ms, percentile(95%) = 0.04 ms, percentile(99%) = 0.05 ms
[09/02/2026-10:00:01] [I] H2D Latency: min = 0.01 ms, max = 0.02 ms, mean = 0.01 ms, median = 0.01 ms, percentile(90%) = 0.02 ms, percentile(95%) = 0.02 ms, percentile(99%) = 0.02 ms
[09/02/2026-10:00:01] [I] GPU Compute Time: min = 2.1 ms, max = 2.6 ms, mean = 2.1 ms, median = 2.125 ms, percentile(90%) = 2.2 ms, percentile(95%) = 2.3 ms, percentile(99%) = 2.4 ms
[09/02/2026-10:00:01] [I] D2H Latency: min = 0.001 ms, max = 0.01 ms, mean = 0.002 ms, median = 0.002 ms, percentile(90%) = 0.003 ms, percentile(95%) = 0.004 ms, percentile(99%) = 0.005 ms
"""
"""The form of 10's summary; the figures are made up."""
