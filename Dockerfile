# The operator, and a small image for its probes (target "probe"). With a registry at hand:
#   docker buildx build --platform linux/amd64,linux/arm64 -t REGISTRY/sandboxpool:0.1.0 --push .
#   docker buildx build --platform linux/amd64,linux/arm64 --target probe \
#     -t REGISTRY/sandboxpool-probe:0.1.0 --push .
# Nothing in it is bound to an architecture; the images need those that the nodes have.
# All stages start from the same base, so what is compiled in one runs in the other. The tag moves: for
# builds that can be repeated, pin it to the digest that you have checked, such as
#   --build-arg BASE=python:3.11-slim-bookworm@sha256:...
# (`docker buildx imagetools inspect python:3.11-slim-bookworm` prints it).
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

# A shell and the libraries that it is linked with, by their paths on this architecture.
FROM ${BASE} AS shell
RUN mkdir /shell && cp --dereference --parents /bin/sh $(ldd /bin/sh | grep -o '/[^ ]*') /shell

FROM scratch AS probe
COPY --from=shell /shell /
USER 65532:65532
ENTRYPOINT ["/bin/sh"]

FROM ${BASE}
# Two layers: a change of the operator leaves the large one as it was.
COPY --from=build /opt/dependencies /opt/dependencies
COPY --from=build /opt/operator /opt/operator
ENV PYTHONPATH=/opt/operator:/opt/dependencies PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /tmp
# By number: the kubelet cannot tell of a name that it is not root. Any other uid will do as well, as
# OpenShift gives one: everything is readable by all, and only /tmp is written to.
USER 65532:65532
ENTRYPOINT ["python3", "-m", "sandboxpool"]
