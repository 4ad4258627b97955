//! Declared providers on a real database: registered by name, and served under one file at a time.

use crate::process::Settings;
use crate::support::{database, eventually};
use paypoll::config::Database;
use paypoll::domain::Floors;
use paypoll::store::{Registration, Store};
use rustix::process::Signal;
use std::time::Duration;
use uuid::Uuid;

const LEASE: Duration = Duration::from_secs(30);

fn store(url: &str) -> Store {
    Store::open(&Database { url: Some(url.into()), max_connections: 4, connect_timeout: Duration::from_secs(30) }).unwrap()
}

fn registration(name: &str, hash: char) -> Registration {
    Registration {
        name: name.into(),
        secret_params: vec!["pin".into()],
        sha256: hash.to_string().repeat(64),
        format: 1,
        floors: Floors { first: Duration::from_secs(120), rate: Some(5.0), ..Floors::default() },
    }
}

#[tokio::test]
async fn a_transaction_may_name_a_declared_provider_once_it_is_registered_and_not_before() {
    let database = database().await;
    let insert =
        || sqlx::query("insert into paypoll.transactions (provider, reference) values ('acme', 'R')").execute(&database.pool);
    let refused = insert().await.unwrap_err().to_string();
    assert!(refused.contains("provider 'acme' is not known to paypoll: it is one of dropayment, dusupay"), "{refused}");
    let store = store(&database.url);
    store.register_declaration(&registration("acme", 'a')).await.unwrap();
    store.register_declaration(&registration("acme", 'b')).await.unwrap();
    insert().await.unwrap();
    let floors = store.declared_floors().await.unwrap();
    assert_eq!(floors.len(), 2, "what an earlier file forbade is still known");
    assert_eq!(floors[&vec![0xaa; 32]].first, Duration::from_secs(120));
    let refused = store.register_declaration(&registration("khalti", 'a')).await.unwrap_err().to_string();
    assert!(refused.contains("compiled into paypoll"), "{refused}");
}

#[tokio::test]
async fn of_two_replicas_with_different_files_one_serves_until_it_lets_go() {
    let database = database().await;
    let store = store(&database.url);
    let (first, second, third) = (Uuid::from_u128(1), Uuid::from_u128(2), Uuid::from_u128(3));
    let (a, b) = ("a".repeat(64), "b".repeat(64));
    assert_eq!(store.hold_declaration(first, "acme", &a, LEASE).await.unwrap(), None);
    assert_eq!(store.hold_declaration(second, "acme", &a, LEASE).await.unwrap(), None, "the same file");
    assert_eq!(store.hold_declaration(third, "acme", &b, LEASE).await.unwrap(), Some(a.clone()));
    assert_eq!(store.hold_declaration(third, "other", &b, LEASE).await.unwrap(), None, "another provider");
    store.release_declarations(first).await.unwrap();
    assert_eq!(store.hold_declaration(third, "acme", &b, LEASE).await.unwrap(), Some(a.clone()));
    // Its lease has ended: it is dead, or cut off.
    assert_eq!(store.hold_declaration(second, "acme", &a, Duration::ZERO).await.unwrap(), None);
    assert_eq!(store.hold_declaration(third, "acme", &b, LEASE).await.unwrap(), None);
    assert_eq!(store.hold_declaration(second, "acme", &a, LEASE).await.unwrap(), Some(b));
}

/// Acme, as its file has it, served from its own examples.
mod acme {
    use crate::support::{Provider, TOLERANCE};
    use paypoll::simulator::Options;
    use std::net::Ipv4Addr;
    use std::path::PathBuf;

    pub(super) const SPEED: f64 = 60.0;

    pub(super) fn file() -> PathBuf {
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/declared/acme.toml").into()
    }

    pub(super) fn simulator() -> Provider {
        let declared = paypoll::commands::plays(&[file()]).unwrap();
        let options = Options { speed: SPEED, tolerance: TOLERANCE, declared, ..Options::default() };
        Provider::start_with((Ipv4Addr::LOCALHOST, 0).into(), options)
    }

    pub(super) fn configuration(database: &str, address: std::net::SocketAddr) -> String {
        format!(
            "[database]\nurl = {database:?}\n[log]\nfilter = \"info,paypoll=debug\"\n[ops]\nlisten = \"\"\n[worker]\nlease = \"4s\"\n\
             [providers.acme]\ndeclaration = {:?}\nenabled = true\nbase_url = \"http://{address}/acme\"\ntimeout = \"1s\"\nregion = \"eu\"\n\
             not_found = {{ limit = 1, min_age = \"1s\" }}\n[providers.acme.accounts.default]\nmerchant = \"m-1\"\napi_key = \"acme-key-0001\"\n",
            file().display()
        )
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_polls_a_declared_provider_like_any_other_and_keeps_its_secrets() {
    use std::io::Read as _;
    use std::process::{Command, Stdio};

    let (database, provider) = (database().await, acme::simulator());
    let config = std::env::temp_dir().join(format!("paypoll-acme-{}.toml", std::process::id()));
    std::fs::write(&config, acme::configuration(&database.url, provider.address)).unwrap();
    let mut daemon = Command::new(env!("CARGO_BIN_EXE_paypoll"))
        .args(["run", "--speed", &acme::SPEED.to_string(), "--config"])
        .arg(&config)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = daemon.stdout.take().unwrap();
    let log = std::thread::spawn(move || {
        let mut text = String::new();
        stdout.read_to_string(&mut text).unwrap();
        text
    });
    // Registered as soon as it runs: before that inserting is refused.
    let registered = "select count(*) from paypoll.providers where name = 'acme'";
    eventually("acme is registered", || async {
        let count: i64 = sqlx::query_scalar(registered).fetch_one(&database.pool).await.unwrap();
        (count == 1).then_some(())
    })
    .await;
    let expected = [
        ("A-1", "succeeded"),
        ("A-2--declined", "failed"),
        ("A-3--open--paid", "succeeded"),
        ("A-4--500--void", "cancelled"),
        ("A-5--returned", "refunded"),
        ("A-6--not-found", "unresolved"),
    ];
    for (reference, _) in expected {
        sqlx::query(
            "insert into paypoll.transactions (provider, reference, params, amount, currency)
             values ('acme', $1, '{\"wallet\":\"w-1\",\"pin\":\"pin-canary-0001\"}', 12.50, 'EUR')",
        )
        .bind(reference)
        .execute(&database.pool)
        .await
        .unwrap();
    }
    for (reference, state) in expected {
        eventually(&format!("{reference} is {state}"), || async {
            let now: String = sqlx::query_scalar("select state from paypoll.transactions where reference = $1")
                .bind(reference)
                .fetch_one(&database.pool)
                .await
                .unwrap();
            (now == state).then_some(())
        })
        .await;
    }
    rustix::process::kill_process(rustix::process::Pid::from_child(&daemon), rustix::process::Signal::TERM).unwrap();
    assert!(daemon.wait().unwrap().success());
    let log = log.join().unwrap();
    std::fs::remove_file(&config).unwrap();
    provider.assert_no_violations();

    let (polls, hashed): (i64, i64) =
        sqlx::query_as("select count(*), count(declaration) from paypoll.polls where provider = 'acme'")
            .fetch_one(&database.pool)
            .await
            .unwrap();
    assert!(polls >= 8 && polls == hashed, "every poll says under which file it was sent: {polls}, {hashed}");
    let kept: String = sqlx::query_scalar(
        "select (select jsonb_agg(to_jsonb(t) - 'params')::text from paypoll.transactions t)
             || (select jsonb_agg(to_jsonb(x))::text from paypoll.transitions x)
             || (select jsonb_agg(to_jsonb(p))::text from paypoll.polls p)",
    )
    .fetch_one(&database.pool)
    .await
    .unwrap();
    for secret in ["acme-key-0001", "pin-canary-0001", "JOHN DOE"] {
        assert!(!kept.contains(secret), "{secret} was kept");
        assert!(!log.contains(secret), "{secret} was logged");
    }
    assert!(log.contains("\"acme\"") && kept.contains("12.5"));
    let params: Vec<serde_json::Value> =
        sqlx::query_scalar("select params from paypoll.transactions where finalized_at is not null")
            .fetch_all(&database.pool)
            .await
            .unwrap();
    assert_eq!(params.len(), 5);
    assert!(params.iter().all(|params| *params == serde_json::json!({"wallet": "w-1"})), "what is secret is erased: {params:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_file_is_served_after_sighup_and_one_that_is_refused_changes_nothing() {
    let (database, provider) = (database().await, acme::simulator());
    let text = std::fs::read_to_string(acme::file()).unwrap();
    let file = written("reloaded.toml", &text);
    let original = acme::file().display().to_string();
    let config = acme::configuration(&database.url, provider.address).replace(&original, &file);
    let config = written("reload-config.toml", &config);
    let mut daemon = Settings::new(&database.url).run(&["--speed", &acme::SPEED.to_string(), "--config", &config]);
    daemon.tells("daemon_started").await;
    let ends = async |reference: &'static str, wanted: &str| {
        let insert = "insert into paypoll.transactions (provider, reference, params, amount, currency)
                      values ('acme', $1, '{\"wallet\":\"w-1\",\"pin\":\"1\"}', 12.50, 'EUR')";
        sqlx::query(insert).bind(reference).execute(&database.pool).await.unwrap();
        eventually(reference, || async {
            let state = "select state from paypoll.transactions where reference = $1";
            let state: String = sqlx::query_scalar(state).bind(reference).fetch_one(&database.pool).await.unwrap();
            (state == wanted).then_some(())
        })
        .await;
    };
    ends("A-1", "succeeded").await;

    std::fs::write(&file, text.replace("title", "tittle")).unwrap();
    daemon.signal(Signal::HUP);
    let told = daemon.tells("config_rejected").await;
    assert!(told["error"].as_str().unwrap().contains("tittle"), "{told}");
    ends("A-2--declined", "failed").await;

    std::fs::write(&file, format!("{text}\n# Read anew.\n")).unwrap();
    daemon.signal(Signal::HUP);
    assert_eq!(daemon.tells("config_reloaded").await["changed"], "providers.acme.declaration");
    ends("A-5--returned", "refunded").await;
    assert!(daemon.terminate().await.0.success());
    assert_eq!(daemon.told("declaration_differs").len(), 0);
    let files = "select count(distinct declaration) from paypoll.polls";
    assert_eq!(sqlx::query_scalar::<_, i64>(files).fetch_one(&database.pool).await.unwrap(), 2);
    provider.assert_no_violations();
    for file in [file, config] {
        std::fs::remove_file(file).unwrap();
    }
}

fn paypoll(arguments: &[&str]) -> (i32, String, String) {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_paypoll"))
        .args(arguments)
        .env_remove("DATABASE_URL")
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// A file of this test's own.
fn written(name: &str, text: &str) -> String {
    let path = std::env::temp_dir().join(format!("paypoll-provider-{}-{name}", std::process::id()));
    std::fs::write(&path, text).unwrap();
    path.to_string_lossy().into_owned()
}

#[test]
fn a_providers_file_is_tested_with_exit_codes_that_tell_a_refused_file_from_a_failed_example() {
    let acme = std::fs::read_to_string(acme::file()).unwrap();
    let file = acme::file().to_string_lossy().into_owned();
    let (code, out, errors) = paypoll(&["provider", "test", &file]);
    assert_eq!((code, errors.as_str()), (0, ""), "{out}");
    assert!(out.contains("13 examples, 73 changed answers of which 0 would end a transaction: in order"), "{out}");

    let failing =
        written("failing.toml", &acme.replace("expect = { outcome = \"cancelled\" }", "expect = { outcome = \"pending\" }"));
    let (code, out, errors) = paypoll(&["provider", "test", &failing]);
    assert_eq!(code, 1, "{out}{errors}");
    assert!(
        out.contains("FAIL  void") && out.contains("line 112: expect.outcome is \"pending\", and it comes to \"cancelled\""),
        "{out}"
    );

    let refused = written("refused.toml", &acme.replace("title", "tittle"));
    let (code, out, errors) = paypoll(&["provider", "test", &refused]);
    assert_eq!(code, 2, "{out}");
    assert!(errors.contains("refused.toml, line 4: tittle: is not a known key"), "{errors}");

    let twin = written("twin.toml", &acme);
    let (code, _, errors) = paypoll(&["provider", "test", &file, &twin]);
    assert!(code == 2 && errors.contains("\"acme\" is the name in"), "{errors}");
    let (code, _, errors) = paypoll(&["provider", "test", "/nowhere.toml"]);
    assert!(code == 2 && errors.contains("/nowhere.toml: the file cannot be read"), "{errors}");
    for file in [failing, refused, twin] {
        std::fs::remove_file(file).unwrap();
    }
}

#[test]
fn a_skeleton_has_a_question_for_everything_and_show_tells_what_a_provider_means() {
    let (code, skeleton, _) = paypoll(&["provider", "new", "zebrapay"]);
    assert!(code == 0 && skeleton.contains("name = \"zebrapay\"") && skeleton.matches("???").count() > 20, "{skeleton}");
    let file = written("skeleton.toml", &skeleton);
    let (code, _, errors) = paypoll(&["provider", "test", &file]);
    assert!(code == 2 && errors.contains("answer.amount.unit: \"???\" is no unit"), "{errors}");
    std::fs::remove_file(file).unwrap();
    for name in ["khalti", "Zebra", "z", ""] {
        assert_eq!(paypoll(&["provider", "new", name]).0, 2, "{name}");
    }
    let (code, out, _) = paypoll(&["provider", "show", &acme::file().to_string_lossy()]);
    assert!(
        code == 0 && out.contains("paid+captured            succeeded, final") && out.contains("at most 5 requests a second"),
        "{out}"
    );
    let (code, out, _) = paypoll(&["provider", "show", "dusupay"]);
    assert!(code == 0 && out.contains("compiled in") && out.contains("no gap under 5m"), "{out}");
    let (code, _, errors) = paypoll(&["provider", "show", "nobody"]);
    assert!(code == 2 && errors.contains("is neither a file nor a known provider"), "{errors}");
    let config = written("plan.toml", &acme::configuration("postgres:///none", ([127, 0, 0, 1], 9500).into()));
    let (code, out, errors) = paypoll(&["plan", "acme", "--config", &config, "--for", "20m"]);
    assert!(code == 0 && out.contains("2m1s"), "{out}{errors}");
    std::fs::remove_file(config).unwrap();
}

#[test]
fn one_real_request_shows_what_an_answer_would_mean_and_no_secret() {
    let provider = acme::simulator();
    let config = written("live.toml", &acme::configuration("postgres:///none", provider.address));
    let file = acme::file().to_string_lossy().into_owned();
    let asked = |reference: &str| {
        let params = r#"{"wallet":"w-1","pin":"pin-canary-0002"}"#;
        paypoll(&["--config", &config, "provider", "test", &file, "--live", "--reference", reference, "--params", params])
    };
    let (code, out, errors) = asked("L-1--declined");
    assert!(code == 0 && out.contains("it would mean failed (word \"declined+\""), "{out}{errors}");
    assert!(out.contains("POST http://") && out.contains("x-key: [redacted]") && out.contains("nothing was written"), "{out}");
    assert!(!out.contains("acme-key-0001") && !out.contains("pin-canary-0002"), "{out}");
    let (code, out, _) = asked("L-2--not-found");
    assert!(code == 1 && out.contains("it would mean not_found"), "{out}");
    let (code, _, errors) = paypoll(&["provider", "test", &file, "--live", "--reference", "R"]);
    assert!(code == 2 && errors.contains("acme is not enabled"), "{errors}");
    std::fs::remove_file(config).unwrap();
    provider.assert_no_violations();
}
