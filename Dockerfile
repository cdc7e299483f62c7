# hapilot as PID 1 of the stock HAProxy. One static binary, so it runs on any of these:
#   docker build -t hapilot .
#   docker build -t hapilot --build-arg RUNTIME_IMAGE=haproxy:3.2 .
#   docker build -t hapilot --build-arg RUNTIME_IMAGE=haproxy:3.2-alpine .
# Where no base image can be pulled, scripts/image makes stand-ins of the same names first.
ARG RUST_IMAGE=rust:1-slim-trixie
ARG RUNTIME_IMAGE=debian:trixie-slim

FROM ${RUST_IMAGE} AS build
WORKDIR /hapilot
# for proc macros and build scripts the target has to be named, else they would become static too and not load
ENV RUSTFLAGS="-C target-feature=+crt-static" CARGO_TARGET_DIR=/target
# the packages in a layer of their own: it stays as long as Cargo.lock does
COPY Cargo.toml Cargo.lock ./
RUN mkdir src \
    && echo 'fn main() {}' >src/main.rs \
    && touch src/lib.rs \
    && cargo build --release --locked --target "$(rustc -vV | sed -n 's/^host: //p')" \
    && rm -r src
COPY docker docker
COPY src src
# cargo goes by time, and a fresh clone may be older than the layer above
RUN touch src/main.rs src/lib.rs \
    && cargo build --release --locked --target "$(rustc -vV | sed -n 's/^host: //p')" \
    && cp /target/*/release/hapilot /usr/local/bin/hapilot \
    && if grep -q HAPILOT_FAULT /usr/local/bin/hapilot; then echo 'the binary has a switch for faults, which only tests may have' >&2; exit 1; fi \
    && if ldd /usr/local/bin/hapilot | grep '=>'; then echo 'the binary is not static' >&2; exit 1; fi

FROM ${RUNTIME_IMAGE}
LABEL org.opencontainers.image.title="hapilot" \
      org.opencontainers.image.description="PID 1 for the stock HAProxy: transparent proxying, lossless reloads, nothing left behind" \
      org.opencontainers.image.licenses="Apache-2.0"
# Docker's official HAProxy image runs as haproxy; hapilot needs its rights for the host, HAProxy drops its own
USER root
COPY docker/packages /tmp/packages
RUN sh /tmp/packages && rm /tmp/packages
COPY --from=build /usr/local/bin/hapilot /usr/local/bin/hapilot
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["hapilot", "health"]
ENTRYPOINT ["hapilot"]
