//! Declared providers while the daemon runs: registered at the start, and served only while no
//! living replica has read another file.
//!
//! Each replica holds a lease for each declared provider under the hash of its file. A replica with
//! another file waits until the last holder of the first one is gone, and says so: two files would
//! call one answer by two names.

use crate::config::Config;
use crate::providers::declared::Declaration;
use crate::store::{Registration, Store, StoreError};
use crate::telemetry::event;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};
use uuid::Uuid;

/// How often a lease is renewed, or tried for.
const EVERY: Duration = Duration::from_secs(2);
/// How long a lease outlives its last renewal.
const LEASE: Duration = Duration::from_secs(30);
/// Without a renewal for this long nothing is sent any more: it is shorter than the lease, whatever
/// the clocks say.
const CERTAIN: Duration = Duration::from_secs(20);

/// Whether this replica may poll a provider: a declared one may not be polled as long as another
/// file is served. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Permit(Arc<AtomicBool>);

impl Permit {
    /// Whether nothing is to be sent.
    #[must_use]
    pub fn is_withheld(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn withhold(&self, withheld: bool) {
        self.0.store(withheld, Ordering::Relaxed);
    }
}

/// The declared providers of this replica, and what it holds of them.
pub struct Declarations {
    store: Store,
    holder: Uuid,
    served: Vec<Served>,
}

struct Served {
    declaration: &'static Declaration,
    permit: Permit,
    held_at: Option<Instant>,
    /// The other file that was reported.
    told: Option<String>,
}

impl Declarations {
    /// Registers the enabled declared providers; none of them may be polled yet. The permits belong
    /// to the providers in the order of the configuration.
    pub async fn register(config: &Config, store: &Store) -> Result<(Self, Vec<Permit>), StoreError> {
        let mut served = Vec::new();
        let mut permits = Vec::with_capacity(config.providers.len());
        for provider in &config.providers {
            let permit = Permit::default();
            if let Some(declaration) = provider.descriptor.declaration() {
                store.register_declaration(&registration(declaration)).await?;
                permit.withhold(true);
                served.push(Served { declaration, permit: permit.clone(), held_at: None, told: None });
            }
            permits.push(permit);
        }
        let declarations = Self { store: store.clone(), holder: Uuid::from_u128(rand::random()), served };
        Ok((declarations, permits))
    }

    /// Takes free leases and renews them until nothing is sent any more, then releases them.
    pub async fn keep(mut self, drained: CancellationToken) {
        if self.served.is_empty() {
            return;
        }
        self.renew().await;
        while !drained.is_cancelled() {
            tokio::select! {
                () = drained.cancelled() => {}
                () = tokio::time::sleep(EVERY) => self.renew().await,
            }
        }
        // If this fails, a replica that waits for the lease waits for its end.
        drop(tokio::time::timeout(EVERY, self.store.release_declarations(self.holder)).await);
    }

    async fn renew(&mut self) {
        for served in &mut self.served {
            let asked = Instant::now();
            let (name, sha256) = (served.declaration.name(), served.declaration.sha256());
            let held = tokio::time::timeout(CERTAIN / 4, self.store.hold_declaration(self.holder, name, sha256, LEASE)).await;
            match held {
                Ok(Ok(None)) => {
                    if served.told.take().is_some() {
                        info!(
                            event = event::DECLARATION_SERVED,
                            provider = name,
                            sha256,
                            "{name} is served: no replica has another file any more"
                        );
                    }
                    served.held_at = Some(asked);
                }
                Ok(Ok(Some(other))) => {
                    served.held_at = None;
                    if served.told.as_ref() != Some(&other) {
                        error!(
                            event = event::DECLARATION_DIFFERS,
                            provider = name,
                            sha256,
                            other,
                            "{name} is not served here: {} has the hash {sha256}, and a living replica serves it under {other}; give all replicas \
                             the same file",
                            served.declaration.origin()
                        );
                        served.told = Some(other);
                    }
                }
                // The loop reports that the database is unavailable.
                Ok(Err(_)) | Err(_) => {}
            }
            served.permit.withhold(served.held_at.is_none_or(|at| at.elapsed() >= CERTAIN));
        }
    }
}

fn registration(declaration: &Declaration) -> Registration {
    let secrets = declaration.params().filter(|(_, _, secret)| *secret);
    Registration {
        name: declaration.name().to_owned(),
        // What holds a secret deeper down goes as a whole.
        secret_params: secrets.map(|(name, ..)| name.split('.').next().unwrap_or(name).to_owned()).collect(),
        sha256: declaration.sha256().to_owned(),
        format: declaration.format(),
        floors: declaration.limits(),
    }
}
