//! Declared providers in the database: registered under the hash of their file, and served under
//! one file at a time.

use super::{Store, StoreError};
use crate::domain::Floors;
use serde_json::{Value, json};
use sqlx::Row;
use std::collections::HashMap;
use std::time::Duration;
use uuid::Uuid;

/// A declared provider as it is registered.
#[derive(Clone, Debug)]
pub struct Registration {
    /// The provider's name.
    pub name: String,
    /// Keys of params whose values are secrets.
    pub secret_params: Vec<String>,
    /// SHA-256 of its file, in hex.
    pub sha256: String,
    /// The version of the language.
    pub format: i32,
    /// What its documentation forbids.
    pub floors: Floors,
}

impl Store {
    /// Registers a declared provider, or what has changed in its file.
    pub async fn register_declaration(&self, provider: &Registration) -> Result<(), StoreError> {
        sqlx::query("select paypoll.register_declaration($1, $2, $3, $4, $5)")
            .bind(&provider.name)
            .bind(&provider.secret_params)
            .bind(&provider.sha256)
            .bind(provider.format)
            .bind(written(&provider.floors))
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Takes the lease of a provider under a file for this long. `None` when it is taken; else the
    /// hash of the file under which another living replica serves it.
    pub async fn hold_declaration(
        &self,
        holder: Uuid,
        provider: &str,
        sha256: &str,
        lease: Duration,
    ) -> Result<Option<String>, StoreError> {
        let held = sqlx::query_scalar("select paypoll.hold_declaration($1, $2, $3, make_interval(secs => $4))")
            .bind(holder)
            .bind(provider)
            .bind(sha256)
            .bind(lease.as_secs_f64())
            .fetch_one(&self.pool)
            .await?;
        Ok(held)
    }

    /// Releases a replica's leases.
    pub async fn release_declarations(&self, holder: Uuid) -> Result<(), StoreError> {
        sqlx::query("select paypoll.release_declarations($1)").bind(holder).execute(&self.pool).await?;
        Ok(())
    }

    /// The floors of every file that was ever served, by its hash.
    pub async fn declared_floors(&self) -> Result<HashMap<Vec<u8>, Floors>, StoreError> {
        let rows =
            sqlx::query("select decode(sha256, 'hex') as hash, floors from paypoll.declarations").fetch_all(&self.pool).await?;
        rows.iter().map(|row| Ok((row.try_get("hash")?, read(&row.try_get("floors")?)))).collect()
    }
}

/// Milliseconds; what is not forbidden is left out.
fn written(floors: &Floors) -> Value {
    let millis = |wait: Duration| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
    let mut value = json!({});
    for (key, wait) in [("first_ms", Some(floors.first)), ("every_ms", Some(floors.every)), ("window_ms", floors.window)] {
        if let Some(wait) = wait.filter(|wait| !wait.is_zero()) {
            value[key] = millis(wait).into();
        }
    }
    if let Some(rate) = floors.rate {
        value["rate"] = json!(rate);
    }
    value
}

fn read(value: &Value) -> Floors {
    let wait = |key: &str| value.get(key).and_then(Value::as_u64).map(Duration::from_millis);
    Floors {
        first: wait("first_ms").unwrap_or_default(),
        margin: Duration::ZERO,
        every: wait("every_ms").unwrap_or_default(),
        window: wait("window_ms"),
        rate: value.get("rate").and_then(Value::as_f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floors_come_back_as_they_were_written() {
        let floors = Floors {
            first: Duration::from_secs(120),
            margin: Duration::ZERO,
            every: Duration::from_millis(1_500),
            window: Some(Duration::from_secs(180)),
            rate: Some(2.5),
        };
        assert_eq!(read(&written(&floors)), floors);
        assert_eq!(written(&Floors::default()), json!({}));
        assert_eq!(read(&json!({})), Floors::default());
    }
}
