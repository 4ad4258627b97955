FROM rust:1.95-slim-bookworm AS build
WORKDIR /build

# The dependencies, with an empty program in place of ours: built again only when they change.
COPY Cargo.toml Cargo.lock ./
RUN mkdir src benches && touch src/lib.rs benches/micro.rs && echo 'fn main() {}' > src/main.rs \
    && cargo build --release --locked --bin paypoll \
    && rm -r src benches

# Ours. The copied files may be older than the empty ones, which cargo would then take for current.
COPY . .
RUN touch src/lib.rs src/main.rs && cargo build --release --locked --bin paypoll


FROM debian:bookworm-slim
# The newest certificates are the right ones, whatever their version.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin paypoll
COPY --from=build /build/target/release/paypoll /usr/local/bin/paypoll

# By number, so that an orchestrator can see that it is not root.
USER 10001
# /healthz, /readyz and /metrics. They listen on the container's loopback until PAYPOLL__OPS__LISTEN says 0.0.0.0:9464; whatever runs
# the container probes them from there, as the image holds no HTTP client to do it from inside.
EXPOSE 9464
# `paypoll run` gives back what it has claimed and ends by itself; give it longer than `worker.shutdown_grace`.
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/paypoll"]
CMD ["run"]
