//! `paypoll simulate`: the five providers' status APIs and declared ones in one process, until
//! SIGINT or SIGTERM.

use crate::simulator::{Options, SLOWEST, Simulator};
use anyhow::{Context as _, ensure};
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// Where the simulator listens by default: only this machine reaches it.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:9500";

/// Runs the simulator. Prints where it listens and where its report is.
///
/// # Errors
/// When the speed is below [`SLOWEST`] or no number, a file is refused, or the address cannot be listened on.
pub async fn run(listen: SocketAddr, speed: f64, files: &[PathBuf]) -> anyhow::Result<()> {
    ensure!(speed.is_finite() && speed >= SLOWEST, "--speed {speed} is not a number from {SLOWEST} up: 1 is real time");
    let declared = super::play::files(files)?;
    let listener =
        TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}: choose another --listen"))?;
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let address = listener.local_addr()?;
    let mut out = std::io::stdout();
    writeln!(out, "the simulator listens on http://{address} at speed {speed}: the base_url of every provider")?;
    for play in &declared {
        writeln!(out, "{} is declared: its base_url is http://{address}/{}", play.name(), play.name())?;
    }
    writeln!(out, "its report: http://{address}/_simulator/report")?;
    out.flush()?;
    let stop = async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    Simulator::new(Options { speed, declared, ..Options::default() }).serve(listener, stop).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_speed_that_is_none_is_refused() {
        let listen = "127.0.0.1:0".parse().expect("an address");
        for speed in [0.0, -1.0, f64::NAN, f64::INFINITY, 0.0001] {
            let error = run(listen, speed, &[]).await.expect_err("refused");
            assert!(error.to_string().starts_with("--speed"), "{error}");
        }
    }

    #[tokio::test]
    async fn an_address_in_use_is_named() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = taken.local_addr().expect("bound");
        let error = run(address, 1.0, &[]).await.expect_err("refused");
        assert!(error.to_string().contains(&address.to_string()), "{error}");
    }

    #[test]
    fn by_default_only_this_machine_is_served() {
        assert!(DEFAULT_LISTEN.parse::<SocketAddr>().is_ok_and(|address| address.ip().is_loopback()));
    }
}
