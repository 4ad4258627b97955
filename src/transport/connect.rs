//! Connections: the certificates that the system trusts, and the kinds of failure to connect.

use reqwest::ClientBuilder;
use rustix::io::Errno;
use rustls::client::ClientConfig;
use rustls::crypto::aws_lc_rs;
use rustls::{Error as TlsError, RootCertStore};
use rustls_platform_verifier::Verifier;
use std::error::Error;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tower_layer::Layer;
use tower_service::Service;

/// How TLS connections are made, for all clients: which certificate authorities the system trusts
/// is read once.
#[derive(Clone)]
pub struct Tls {
    pub(super) config: ClientConfig,
    problem: Option<String>,
}

impl Tls {
    /// The certificates that the system trusts. Where there are none, clients work all the same,
    /// but no TLS connection can be made.
    pub fn of_system() -> Result<Self, String> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error: TlsError| format!("TLS cannot be set up: {error}"))?;
        let (config, problem) = match Verifier::new(provider) {
            Ok(verifier) => (builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier)), None),
            Err(error) => (builder.with_root_certificates(RootCertStore::empty()), Some(error.to_string())),
        };
        Ok(Self { config: config.with_no_client_auth(), problem })
    }

    /// As [`Self::of_system`]; errors when one of these hosts is reached over TLS and the system
    /// trusts no certificates.
    pub fn for_hosts<'a>(base_urls: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let tls = Self::of_system()?;
        match (&tls.problem, base_urls.into_iter().find(|url| url.starts_with("https:"))) {
            (Some(problem), Some(url)) => Err(format!(
                "{url} cannot be asked: this system has no certificate authorities ({problem}); install its package \
                 ca-certificates, or set SSL_CERT_FILE to a file that holds them"
            )),
            _ => Ok(tls),
        }
    }
}

/// Whether a request was certainly not sent because this process or machine had nothing left to
/// send it with: descriptors, ports, buffers. Says nothing about the host.
pub(super) fn is_ours(error: &(dyn Error + 'static)) -> bool {
    const EXHAUSTED: [Errno; 4] = [Errno::MFILE, Errno::NFILE, Errno::ADDRNOTAVAIL, Errno::NOBUFS];
    let mut next = Some(error);
    while let Some(error) = next {
        let system = error.downcast_ref::<io::Error>();
        let code = system.and_then(io::Error::raw_os_error);
        if code.is_some_and(|code| EXHAUSTED.iter().any(|errno| errno.raw_os_error() == code)) {
            return true;
        }
        // An error of the system's that holds another one names that one's cause as its own.
        next = match system.and_then(io::Error::get_ref) {
            Some(held) => Some(held),
            None => error.source(),
        };
    }
    false
}

/// Connections that carry one request each, and none whose other end sent data before the request.
pub(super) fn one_request_each(builder: ClientBuilder) -> ClientBuilder {
    builder.pool_max_idle_per_host(0).connector_layer(Listen)
}

/// A new connection is listened to for this long before a request is sent: what comes meanwhile is
/// no answer to a request, and ends it.
const MOMENT: Duration = Duration::from_millis(2);

#[derive(Clone)]
struct Listen;

#[derive(Clone)]
struct Listening<S>(S);

impl<S> Layer<S> for Listen {
    type Service = Listening<S>;
    fn layer(&self, connector: S) -> Listening<S> {
        Listening(connector)
    }
}

impl<S, Target> Service<Target> for Listening<S>
where
    S: Service<Target>,
    S::Future: Send + 'static,
    S::Response: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, target: Target) -> Self::Future {
        let connecting = self.0.call(target);
        Box::pin(async {
            let connection = connecting.await?;
            tokio::time::sleep(MOMENT).await;
            Ok(connection)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_machine_lacks_is_told_apart_from_what_a_host_does() {
        for code in [Errno::MFILE, Errno::NFILE, Errno::ADDRNOTAVAIL, Errno::NOBUFS] {
            let wrapped = io::Error::other(io::Error::from_raw_os_error(code.raw_os_error()));
            assert!(is_ours(&wrapped), "{code:?}");
        }
        for code in [Errno::CONNREFUSED, Errno::CONNRESET, Errno::HOSTUNREACH, Errno::TIMEDOUT] {
            assert!(!is_ours(&io::Error::from_raw_os_error(code.raw_os_error())), "{code:?}");
        }
    }

    #[test]
    fn certificate_authorities_are_missed_only_where_tls_is_needed() {
        let tls = Tls::for_hosts(["http://127.0.0.1:9500"]);
        assert!(tls.is_ok());
    }
}
