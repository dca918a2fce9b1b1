# The operator. With a registry at hand: `docker build -t sandboxpool .`
# Both stages start from the same base, so what is compiled in one runs in the other.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
# Files of a directory "wheels" next to this file, if there is one, are used before any index:
# for machines that build without a network (then with --build-arg PIP_NO_INDEX=1).
ARG PIP_NO_INDEX
COPY requirements/runtime.txt wheels* /build/
# The container's file system is read-only: what is not compiled here is compiled at every start.
RUN python3 -m venv /build/venv \
    && /build/venv/bin/pip install --disable-pip-version-check --no-cache-dir --no-compile \
        --require-hashes --only-binary=:all: --find-links /build \
        --target /opt/dependencies -r /build/runtime.txt \
    && rm -rf /opt/dependencies/bin \
    && python3 -m compileall -q -j 0 /opt/dependencies
COPY operator/sandboxpool /opt/operator/sandboxpool
RUN python3 -m compileall -q -j 0 /opt/operator

FROM ${BASE}
# Two layers: a change of the operator leaves the large one as it was.
COPY --from=build /opt/dependencies /opt/dependencies
COPY --from=build /opt/operator /opt/operator
ENV PYTHONPATH=/opt/operator:/opt/dependencies PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /tmp
USER 65532:65532
ENTRYPOINT ["python3", "-m", "sandboxpool"]
