//! Rows do not disturb their account: whatever is said about some of them, the others are polled at
//! their pace; and a refusal of the account itself is heeded at once.
//!
//! Every provider has an account for each kind of trouble, with 20 good rows and 10 bad ones
//! between them, and one with the 20 good ones alone to compare with.

use crate::support::{Provider, database, eventually};
use paypoll::commands;
use paypoll::config::Config;
use paypoll::simulator::{self, Budget, Options, PROVIDERS};
use sqlx::postgres::PgPool;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;
use tokio_util::sync::CancellationToken;

/// What bad rows are answered, by the simulator's words. `401` is the account's own refusal where
/// the credentials are the account's.
const TROUBLES: [&str; 6] = ["forbidden", "firewall", "wrongotp", "invalid", "400", "notfound"];
/// … and where the credentials came with the row, a refusal of them too.
const ROWS_OWN: [&str; 1] = ["401"];
const GOOD: u64 = 20;
const BAD: u64 = 10;
/// This many polls of each good row are compared.
const POLLS: i64 = 4;

fn troubles(provider: &str) -> Vec<&'static str> {
    let own = if matches!(provider, "dropayment" | "dapi") { &ROWS_OWN[..] } else { &[] };
    TROUBLES.iter().chain(own).copied().collect()
}

/// A daemon for these providers at this speed, until it is dropped.
struct World {
    pool: PgPool,
    stop: CancellationToken,
    _provider: Provider,
}

impl World {
    /// `every`: what lies between two polls, in the rules' own time.
    async fn new(providers: &[&'static str], speed: f64, every: &str) -> Self {
        let database = database().await;
        let budgets = [Budget { per_second: 1_000_000, burst: 1_000_000 }; PROVIDERS.len()];
        let provider = Provider::start_with((Ipv4Addr::LOCALHOST, 0).into(), Options { speed, budgets, ..Options::default() });
        let mut settings = BTreeMap::from(
            [("DATABASE__URL", database.url.clone()), ("OPS__LISTEN", String::new()), ("LOG__FILTER", "off".into())]
                .map(|(key, value)| (format!("PAYPOLL__{key}"), value)),
        );
        for name in providers {
            let mut set = |key: &str, value: &str| {
                settings.insert(format!("PAYPOLL__PROVIDERS__{}__{key}", name.to_uppercase()), value.to_owned());
            };
            set("ENABLED", "true");
            set("BASE_URL", &format!("http://{}", provider.address));
            set("RATE_LIMIT", "{ per_second = 10000, burst = 10000 }");
            match *name {
                "dropayment" => set("SCHEDULE", "{ phases = [{ every = \"4s..5s\", for = \"3m\" }] }"),
                "dusupay" => {}
                _ => set("SCHEDULE", &format!("{{ first = \"1s\", phases = [{{ every = \"{every}\" }}], by_state = {{}} }}")),
            }
            for account in troubles(name).into_iter().chain(["alone", "default", "refused"]) {
                for (key, value) in simulator::account(name) {
                    set(&format!("ACCOUNTS__{}__{}", account.to_uppercase(), key.to_uppercase()), value);
                }
                if *name == "dropayment" {
                    set(&format!("ACCOUNTS__{}__ENDPOINTID", account.to_uppercase()), "1001");
                }
            }
        }
        let config = Config::load(&[], settings.into_iter(), speed).unwrap();
        let stop = CancellationToken::new();
        let stopping = stop.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(commands::run::serve(&config, stopping)).unwrap();
        });
        Self { pool: database.pool, stop, _provider: provider }
    }

    async fn insert(&self, provider: &'static str, account: &str, script: &str) {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let serial = NEXT.fetch_add(1, Ordering::Relaxed);
        sqlx::query(
            "insert into paypoll.transactions (provider, account, reference, params, initiated_at) values ($1, $2, $3, $4, $5)",
        )
        .bind(provider)
        .bind(account)
        .bind(simulator::reference(provider, serial, script))
        .bind(simulator::params(provider, serial))
        .bind(chrono::DateTime::<chrono::Utc>::from(SystemTime::now()))
        .execute(&self.pool)
        .await
        .unwrap();
    }

    /// 20 good rows, and a bad one after every second of them.
    async fn insert_all(&self, provider: &'static str, account: &str, bad: Option<&str>) {
        for number in 0..GOOD {
            self.insert(provider, account, "never").await;
            if let Some(bad) = bad.filter(|_| number % 2 == 1 && number / 2 < BAD) {
                self.insert(provider, account, bad).await;
            }
        }
    }

    async fn open_circuits(&self) -> Vec<(String, String, String)> {
        sqlx::query_as("select provider, account, circuit_reason from paypoll.accounts where circuit_since is not null")
            .fetch_all(&self.pool)
            .await
            .unwrap()
    }

    /// Polls of an account's good rows so far.
    async fn polls(&self, provider: &str, account: &str) -> i64 {
        sqlx::query_scalar(
            "select count(*) from paypoll.polls p join paypoll.transactions t on t.id = p.transaction_id
              where t.provider = $1 and t.account = $2 and t.reference like '%never'",
        )
        .bind(provider)
        .bind(account)
        .fetch_one(&self.pool)
        .await
        .unwrap()
    }
}

impl World {
    /// What lies between two polls of an account's good rows, on average, in seconds.
    async fn gap(&self, provider: &str, account: &str) -> f64 {
        sqlx::query_scalar(
            "select avg(extract(epoch from gap))::float8 from (
                 select p.sent_at - lag(p.sent_at) over (partition by t.id order by p.sent_at) as gap
                   from paypoll.polls p join paypoll.transactions t on t.id = p.transaction_id
                  where t.provider = $1 and t.account = $2 and t.reference like '%never') gaps",
        )
        .bind(provider)
        .bind(account)
        .fetch_one(&self.pool)
        .await
        .unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[allow(clippy::print_stdout, reason = "figures for whoever wants to see them")]
async fn undisturbed(providers: &[&'static str], speed: f64, every: &str) {
    let world = World::new(providers, speed, every).await;
    for provider in providers {
        for trouble in troubles(provider) {
            world.insert_all(provider, trouble, Some(trouble)).await;
        }
        world.insert_all(provider, "alone", None).await;
    }
    let least = GOOD as i64 * POLLS;
    for provider in providers {
        let accounts: Vec<&str> = troubles(provider).into_iter().chain(["alone"]).collect();
        for account in &accounts {
            eventually("the good rows are polled", || async {
                assert_eq!(world.open_circuits().await, [], "{provider}");
                (world.polls(provider, account).await >= least).then_some(())
            })
            .await;
        }
        // Paces are printed, not checked: a busy machine delays them all. What bad rows might do to
        // the good ones is to open their circuit.
        let alone = world.gap(provider, "alone").await;
        for trouble in troubles(provider) {
            let pace = 100.0 * alone / world.gap(provider, trouble).await;
            println!("{provider}: {pace:.1} % of the polls that they get alone, beside rows with {trouble}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_bad_rows_of_thirty_cost_the_good_ones_nothing() {
    tokio::join!(
        undisturbed(&["dropayment"], 1.0, ""),
        undisturbed(&["ayoconnect", "khalti", "dapi"], 1.0, "6s"),
        undisturbed(&["dusupay"], 60.0, ""),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_of_the_account_is_heeded_at_once() {
    // Dropayment has no credentials of the account's; Dapi says whose they were.
    let refused =
        [("dusupay", "refused"), ("dusupay", "denied"), ("ayoconnect", "refused"), ("khalti", "refused"), ("khalti", "badtoken")];
    for (provider, script) in refused {
        let speed = if provider == "dusupay" { 150.0 } else { 2.0 };
        let world = World::new(&[provider], speed, "4s").await;
        for number in 0..GOOD + BAD {
            world.insert(provider, "refused", if number % 3 == 2 { script } else { "never" }).await;
        }
        eventually("the circuit opens", || async {
            let open: i64 = sqlx::query_scalar("select count(*) from paypoll.accounts where circuit_since is not null")
                .fetch_one(&world.pool)
                .await
                .unwrap();
            (open == 1).then_some(())
        })
        .await;
        let refusals: i64 = sqlx::query_scalar(
            "select count(*) from paypoll.polls p join paypoll.accounts a using (provider, account)
              where p.outcome = 'credentials_rejected' and p.sent_at > a.circuit_since + interval '1 second'",
        )
        .fetch_one(&world.pool)
        .await
        .unwrap();
        assert_eq!(refusals, 0, "{provider} {script}: nothing but probes is sent");
    }
}
