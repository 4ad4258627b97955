//! The ops port: health and readiness.

use crate::config::Config;
use crate::metrics::Metrics;
use crate::store::Store;
use anyhow::Context as _;
use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Serves until `stop`. Nothing is served where the configuration names no address.
pub async fn serve(
    config: &Config,
    _store: Store,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> anyhow::Result<JoinHandle<()>> {
    let Some(listen) = config.ops.listen else { return Ok(tokio::spawn(async {})) };
    let listener = TcpListener::bind(listen).await.with_context(|| format!("ops.listen = {listen:?} cannot be listened on"))?;
    let ready = move || {
        let metrics = metrics.clone();
        async move { if metrics.ready.load(Relaxed) { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE } }
    };
    let router = Router::new().route("/healthz", get(|| async { "ok" })).route("/readyz", get(ready));
    Ok(tokio::spawn(async move {
        // An error here is a listener that broke: the daemon itself goes on.
        drop(axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await);
    }))
}
