# mqat on Debian 12, for CPUs. Not built in CI. `docker build -t mqat .` downloads 0.6 GB and takes 15 to 25 minutes on 2 cores;
# the image holds the bundle (0.5 GB), Debian, and ffmpeg with its libraries. --user makes the results yours and not root's.
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD":/work mqat predict --checkpoint net.mqat --camera camera.json pictures --out poses
FROM rust:1.95-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends python3 python3-venv g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /mqat
COPY . .
# ONNX Runtime is carried too. Remove --with-ort where `--engine ort` is not wanted.
RUN ./setup.sh --with-ort --bundle /opt/mqat

FROM debian:12-slim
RUN apt-get update && apt-get install -y --no-install-recommends libstdc++6 ffmpeg && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/mqat /opt/mqat
ENV PATH=/opt/mqat:$PATH
WORKDIR /work
ENTRYPOINT ["mqat"]
