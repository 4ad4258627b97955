//! DusuPay counts its two minutes from its own initiation, which comes after the row where the row
//! is inserted first.

use crate::support::{Provider, database, eventually};
use chrono::{DateTime, Utc};
use paypoll::commands;
use paypoll::config::Config;
use paypoll::simulator::{self, Options};
use serde_json::json;
use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime};
use tokio_util::sync::CancellationToken;

const ROWS: u32 = 20;

/// In real time it takes two minutes and a half: `PAYPOLL_INITIATION_SPEED=1 cargo test --test it
/// initiation -- --nocapture`. Here all of it is ten times as fast, the initiation too.
#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_inserted_seconds_before_their_initiation_are_not_asked_about_too_early() {
    let speed: f64 = std::env::var("PAYPOLL_INITIATION_SPEED").map_or(10.0, |speed| speed.parse().unwrap());
    let database = database().await;
    let provider = Provider::start_with((Ipv4Addr::LOCALHOST, 0).into(), Options { speed, ..Options::default() });
    let settings = [
        ("DATABASE__URL", database.url.clone()),
        ("OPS__LISTEN", String::new()),
        ("LOG__FILTER", "off".into()),
        ("PROVIDERS__DUSUPAY__ENABLED", "true".into()),
        ("PROVIDERS__DUSUPAY__BASE_URL", format!("http://{}", provider.address)),
        ("PROVIDERS__DUSUPAY__RATE_LIMIT", "{ per_second = 10000, burst = 10000 }".into()),
        ("PROVIDERS__DUSUPAY__ACCOUNTS__DEFAULT__PUBLIC_KEY", simulator::account("dusupay")[0].1.into()),
    ];
    let settings = settings.into_iter().map(|(key, value)| (format!("PAYPOLL__{key}"), value));
    let config = Config::load(&[], settings, speed).unwrap();
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    let daemon = tokio::spawn(async move { commands::run::serve(&config, stopping).await });
    let client = reqwest::Client::new();
    let initiations = (0..ROWS).map(|number| {
        let (client, pool, address) = (client.clone(), database.pool.clone(), provider.address);
        // From half a second to eight, in the rules' time.
        let takes = Duration::from_secs_f64((0.5 + 7.5 * f64::from(number) / f64::from(ROWS - 1)) / speed);
        async move {
            let reference = format!("ORDER-{number}-sim-never");
            sqlx::query("insert into paypoll.transactions (provider, reference) values ('dusupay', $1)")
                .bind(&reference)
                .execute(&pool)
                .await
                .unwrap();
            tokio::time::sleep(takes).await;
            let now = DateTime::<Utc>::from(SystemTime::now()).timestamp_millis();
            let body = json!({"provider": "dusupay", "reference": reference, "initiated_at": now}).to_string();
            let url = format!("http://{address}/_simulator/register");
            assert!(client.post(url).body(body).send().await.unwrap().status().is_success());
        }
    });
    all_of(initiations).await;
    // No transaction is polled sooner.
    tokio::time::sleep(Duration::from_secs_f64(129.0 / speed)).await;
    eventually("all are asked about", || async {
        let polls: i64 = sqlx::query_scalar("select count(*) from paypoll.polls").fetch_one(&database.pool).await.unwrap();
        (polls >= i64::from(ROWS)).then_some(())
    })
    .await;
    let (first, last, refused): (f64, f64, i64) = sqlx::query_as(
        "select min(extract(epoch from p.sent_at - t.initiated_at))::float8, max(extract(epoch from p.sent_at - t.initiated_at))::float8,
                count(*) filter (where p.http_status = 403 or p.outcome <> 'pending')
           from paypoll.polls p join paypoll.transactions t on t.id = p.transaction_id",
    )
    .fetch_one(&database.pool)
    .await
    .unwrap();
    println!("at speed {speed}: first polls {:.1} to {:.1} s after the row, {refused} refused", first * speed, last * speed);
    assert_eq!(refused, 0);
    assert!(first * speed >= 129.9, "{first}");
    provider.assert_no_violations();
    stop.cancel();
    daemon.await.unwrap().unwrap();
}

async fn all_of(all: impl Iterator<Item = impl Future<Output = ()> + Send + 'static>) {
    let mut tasks = tokio::task::JoinSet::new();
    all.for_each(|one| drop(tasks.spawn(one)));
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
}
