# The C++ sample for a Jetson with JetPack 7 (Thor), whose containers are those of servers: CUDA 13.0 and TensorRT 10.13 are in the base.
# On the board: docker build -f docker/jetpack7.Dockerfile -t faces . && docker run --runtime nvidia faces
FROM nvcr.io/nvidia/tensorrt:25.08-py3

# The base's own versions, as they are when the image is built.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends cmake g++ make \
 && rm -rf /var/lib/apt/lists/*

ARG ONNXRUNTIME=1.22.0
ADD https://github.com/microsoft/onnxruntime/releases/download/v${ONNXRUNTIME}/onnxruntime-linux-aarch64-${ONNXRUNTIME}.tgz /tmp/onnxruntime.tgz
RUN mkdir /opt/onnxruntime \
 && tar -xzf /tmp/onnxruntime.tgz -C /opt/onnxruntime --strip-components=1 \
 && rm /tmp/onnxruntime.tgz

WORKDIR /package
COPY . .
RUN cmake -S . -B /build -DONNXRUNTIME_ROOT=/opt/onnxruntime -DFR_EDGE_TENSORRT=ON \
 && cmake --build /build \
 && /build/face_sample verify .

USER 65534
ENTRYPOINT ["/build/face_sample"]
CMD ["verify", "."]
