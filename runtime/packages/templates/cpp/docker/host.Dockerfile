# The C++ sample on a server, proven while it is built: docker build -f docker/host.Dockerfile -t faces .
FROM debian:13-slim

# Debian's own versions, as they are when the image is built.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends cmake g++ libonnxruntime-dev make \
 && rm -rf /var/lib/apt/lists/*

WORKDIR /package
COPY . .
RUN cmake -S . -B /build && cmake --build /build && /build/face_sample verify .

USER 65534
ENTRYPOINT ["/build/face_sample"]
CMD ["verify", "."]
