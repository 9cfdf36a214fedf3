# The exporter runs as a numeric user without a name. The root file system may be read-only. The image builds for
# every architecture of the base:
#   docker build -t ecr-replication-exporter .
# The base can be any image with Python 3.11 or newer as python3, for example your own with a digest:
#   docker build --build-arg BASE_IMAGE=registry.example/python@sha256:... .
# To build without a network, download the wheels (pip download -d wheels . hatchling -c constraints.txt) and mount
# their folder with buildah or podman:
#   buildah build -v "$PWD/wheels:/wheels:ro" --build-arg PIP_ARGS="--no-index --find-links=/wheels" .
ARG BASE_IMAGE=docker.io/library/python:3.13.9-slim-trixie

FROM ${BASE_IMAGE} AS build
# "[demo]" adds the packages that --demo needs.
ARG EXTRAS=""
ARG PIP_ARGS=""
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY exporter exporter
COPY docs/runbooks docs/runbooks
ENV PIP_CONSTRAINT=/src/constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
# pip has its own environment, which the final image does not contain.
# hadolint ignore=SC2086
RUN python3 -m venv /pip \
 && /pip/bin/pip wheel ${PIP_ARGS} --no-deps --wheel-dir /dist . \
 && python3 -m venv --without-pip /opt/ecr-replication-exporter \
 && wheel=$(ls /dist/*.whl) \
 && /pip/bin/pip --python /opt/ecr-replication-exporter install ${PIP_ARGS} "${wheel}${EXTRAS}"

FROM ${BASE_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="ecr-replication-exporter" \
      org.opencontainers.image.description="Prometheus exporter for Amazon ECR image replication" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /opt/ecr-replication-exporter /opt/ecr-replication-exporter
ENV PATH=/opt/ecr-replication-exporter/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 65532:65532
EXPOSE 10042
ENTRYPOINT ["/opt/ecr-replication-exporter/bin/ecr-replication-exporter"]
CMD ["--config.file=/etc/ecr-replication-exporter/config.yaml"]
