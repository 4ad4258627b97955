//! The sessions that paypoll opens: what they set, whom they let interfere, and what is refused at the start.

use crate::support::{Provider, TestDatabase, database, empty_database, eventually};
use paypoll::config::Database;
use paypoll::postgres::{Options, PrivatePostgres};
use paypoll::simulator::{self, PROVIDERS};
use paypoll::store::{SchemaError, Store, StoreError};
use rustix::process::{Pid, Signal, kill_process};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use std::net::Ipv4Addr;
use std::process::{Command, Output, Stdio};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, UnixStream};

const ROLES: &str = include_str!("../../deploy/roles.sql");
const SHADOWS: &str = include_str!("shadows.sql");
/// A session of the test's own looks nowhere else.
const PLAIN: &str = "set search_path = pg_catalog";

pub(crate) async fn connect(url: &str) -> PgConnection {
    PgConnection::connect(url).await.unwrap()
}

pub(crate) async fn execute(connection: &mut PgConnection, statements: &str) {
    let done = sqlx::raw_sql(AssertSqlSafe(statements.to_owned())).execute(connection).await;
    done.unwrap_or_else(|error| panic!("{statements}: {error}"));
}

pub(crate) async fn text(connection: &mut PgConnection, query: &str) -> String {
    sqlx::query_scalar::<_, Option<String>>(AssertSqlSafe(query.to_owned()))
        .fetch_one(connection)
        .await
        .unwrap()
        .unwrap_or_default()
}

fn open(url: &str, max_connections: u32) -> Store {
    Store::open_for_polling(&Database {
        url: Some(url.to_owned().into()),
        max_connections,
        connect_timeout: Duration::from_secs(5),
    })
    .unwrap()
}

/// The binary against that database, with all five providers at that address.
pub(crate) fn paypoll(url: &str, provider: &Provider, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_paypoll"));
    command.env_clear().env("DATABASE_URL", url).env("PAYPOLL__OPS__LISTEN", "");
    for name in PROVIDERS {
        command.env(format!("PAYPOLL__PROVIDERS__{}__BASE_URL", name.to_uppercase()), format!("http://{}", provider.address));
    }
    command.args(arguments).arg("--config").arg(concat!(env!("CARGO_MANIFEST_DIR"), "/config/simulator.toml"));
    command
}

pub(crate) async fn run(mut command: Command) -> (i32, String, String) {
    let output = tokio::task::spawn_blocking(move || command.stdin(Stdio::null()).output()).await.unwrap().unwrap();
    let Output { status, stdout, stderr } = output;
    (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

/// The same database for another login.
fn as_login(url: &str, login: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap();
    let (_, place) = rest.split_once('@').unwrap();
    format!("{scheme}://{login}@{place}")
}

/// Makes a login of the test's own (roles belong to the whole cluster) with these options and role,
/// and gives its address.
async fn login(database: &TestDatabase, options: &str) -> (String, String) {
    let mut connection = connect(&database.url).await;
    execute(&mut connection, ROLES).await;
    let name = text(&mut connection, "select current_database()::text || '_login'").await;
    execute(&mut connection, &format!("drop role if exists {name}; create role {name} login {options}")).await;
    (name.clone(), as_login(&database.url, &name))
}

async fn shadow_calls(database: &TestDatabase) -> String {
    let mut connection = connect(&database.url).await;
    execute(&mut connection, PLAIN).await;
    text(&mut connection, "select case when is_called then last_value::text else 'none' end from evil.calls").await
}

/// Plants the shadows, and makes every session of the database look there first by default.
async fn with_shadows(database: &TestDatabase) {
    let mut connection = connect(&database.url).await;
    execute(&mut connection, SHADOWS).await;
    let name = text(&mut connection, "select current_database()::text").await;
    execute(&mut connection, &format!("alter database {name} set search_path = evil, pg_catalog, public")).await;
    let mut victim = connect(&database.url).await;
    execute(&mut victim, "select length('x'), 1 + 1").await;
    assert_eq!(shadow_calls(database).await, "2", "they work");
    execute(&mut connection, "select pg_catalog.setval('evil.calls', 1, false)").await;
}

#[tokio::test]
async fn whatever_a_feeder_puts_into_its_search_path_runs_in_no_trigger_and_in_no_function() {
    let database = database().await;
    with_shadows(&database).await;
    let mut feeder = connect(&database.url).await;
    // Statements that call nothing themselves.
    for statement in [
        "insert into paypoll.transactions (provider, reference, params, amount, currency) values ('dapi', 'R1', '{\"x\": \"y\"}', 5, 'npr')",
        "insert into paypoll.transactions (provider, reference) values ('khalti', 'R9') on conflict do nothing",
        "update paypoll.transactions set amount = 7, next_poll_at = '2030-01-01'",
        "update paypoll.transactions set account = 'b'",
        "update paypoll.transactions set owner = null, updated_at = '2020-01-01'",
        "select paypoll.settle('dapi', 'b', 'R1', 'unresolved', 'word', 'reason', '{}')",
        "select paypoll.shown_params(id) from paypoll.transactions",
        "update paypoll.transactions set state = 'failed'",
        "select paypoll.override_state(id, 'succeeded', 'x') from paypoll.transactions",
        "select id, to_state from paypoll.transitions_since(0)",
        "select paypoll.pause('khalti', 'default', 'x')",
        "select paypoll.resume('khalti', 'default')",
        "select paypoll.register_provider('paystack', '{pin}', '0000000000000000000000000000000000000000000000000000000000000000', 1)",
        "select paypoll.make_journal('2031-01-01', '2031-01-02')",
        "select paypoll.prune_journal('2020-01-01')",
        "delete from paypoll.transactions",
    ] {
        execute(&mut feeder, statement).await;
        assert_eq!(shadow_calls(&database).await, "none", "{statement}");
    }
    let unknown = sqlx::raw_sql("insert into paypoll.transactions (provider, reference) values ('unknown', 'R1')");
    unknown.execute(&mut feeder).await.expect_err("refused as ever");
    assert_eq!(shadow_calls(&database).await, "none");
}

#[tokio::test]
async fn whatever_stands_in_the_databases_search_path_is_run_by_no_statement_of_paypolls() {
    let provider = Provider::start(1.0);
    let database = database().await;
    with_shadows(&database).await;
    let mut connection = connect(&database.url).await;
    execute(&mut connection, PLAIN).await;
    for script in ["ok", "failed", "500x2-ok", "404x2-ok", "action-ok2"] {
        for name in ["dapi", "dropayment"] {
            let serial = 7;
            sqlx::query("insert into paypoll.transactions (provider, reference, params) values ($1, $2, $3)")
                .bind(name)
                .bind(simulator::reference(name, serial, script))
                .bind(simulator::params(name, serial))
                .execute(&mut connection)
                .await
                .unwrap();
        }
    }
    execute(&mut connection, "insert into paypoll.transactions (provider, reference) values ('dapi', 'flawed'), ('khalti', 'R')")
        .await;
    assert_eq!(run(paypoll(&database.url, &provider, &["migrate"])).await.0, 0);
    let mut daemon = paypoll(&database.url, &provider, &["run"]).stdout(Stdio::null()).spawn().unwrap();
    let settled = "select case when count(*) >= 5 then 'enough' end from paypoll.transactions where next_poll_at is null";
    let mut watch = connect(&database.url).await;
    execute(&mut watch, PLAIN).await;
    let watch = tokio::sync::Mutex::new(watch);
    eventually("some transactions are settled", || async {
        (text(&mut *watch.lock().await, settled).await == "enough").then_some(())
    })
    .await;
    kill_process(Pid::from_child(&daemon), Signal::TERM).unwrap();
    tokio::task::spawn_blocking(move || daemon.wait()).await.unwrap().unwrap();
    execute(&mut connection, "update paypoll.transactions set state = 'unresolved' where reference = 'R'").await;
    let id = text(&mut connection, "select id::text from paypoll.transactions where reference = 'R'").await;
    for (arguments, code) in [
        (&["status"][..], 0),
        (&["status", "--json"], 0),
        (&["show", "R"], 0),
        (&["show", &id, "--json"], 0),
        (&["retry", "--provider", "khalti", "--since", "1h", "--dry-run"], 0),
        (&["retry", &id], 0),
        (&["audit"], 0),
        (&["audit", "--since", "1h"], 0),
        (&["check"], 0),
    ] {
        let (done, out, error) = run(paypoll(&database.url, &provider, arguments)).await;
        assert_eq!(done, code, "{arguments:?}: {out}{error}");
    }
    assert_eq!(shadow_calls(&database).await, "none");
}

#[tokio::test]
async fn a_session_sets_what_it_needs_whatever_role_and_database_say() {
    let database = database().await;
    let mut connection = connect(&database.url).await;
    let name = text(&mut connection, "select current_database()::text").await;
    for setting in [
        "enable_nestloop = off",
        "enable_indexscan = off",
        "jit = on",
        "jit_above_cost = 0",
        "default_transaction_isolation = serializable",
        "statement_timeout = 0",
        "timezone = 'Asia/Kathmandu'",
    ] {
        execute(&mut connection, &format!("alter database {name} set {setting}")).await;
    }
    let store = open(&database.url, 2);
    let settings = "select concat_ws(' ', current_setting('enable_nestloop'), current_setting('enable_indexscan'), current_setting('jit'),
                           current_setting('transaction_isolation'), current_setting('statement_timeout'), current_setting('timezone'),
                           current_setting('search_path'))";
    let set: String = sqlx::query_scalar(settings).fetch_one(store.pool()).await.unwrap();
    assert_eq!(set, "on on off read committed 10s UTC pg_catalog");
    store.check_session().await.unwrap();
}

/// Stands between paypoll and the database as a pooler does that ignores the startup parameter `options`.
async fn pooler(database: &TestDatabase) -> String {
    let mut connection = connect(&database.url).await;
    let socket = text(
        &mut connection,
        "select setting || '/.s.PGSQL.' || current_setting('port') from pg_settings where name = 'unix_socket_directories'",
    )
    .await;
    let (login, name) =
        (text(&mut connection, "select current_user::text").await, text(&mut connection, "select current_database()::text").await);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let socket = socket.clone();
            tokio::spawn(async move {
                let mut length = [0; 4];
                client.read_exact(&mut length).await?;
                let mut startup = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap() - 4];
                client.read_exact(&mut startup).await?;
                let mut kept = startup[..4].to_vec();
                let mut words = startup[4..].split(|byte| *byte == 0);
                while let (Some(key), Some(value)) = (words.next(), words.next()) {
                    if !key.is_empty() && key != b"options" {
                        kept.extend([key, b"\0", value, b"\0"].concat());
                    }
                }
                kept.push(0);
                let mut server = UnixStream::connect(&socket).await?;
                server.write_all(&u32::try_from(kept.len() + 4).unwrap().to_be_bytes()).await?;
                server.write_all(&kept).await?;
                copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
    format!("postgres://{login}@{address}/{name}?sslmode=disable")
}

#[tokio::test]
async fn settings_that_a_pooler_keeps_back_are_noticed_and_the_remedy_is_named() {
    let provider = Provider::start(1.0);
    let database = database().await;
    let url = pooler(&database).await;
    for command in ["run", "check"] {
        let (code, out, error) = run(paypoll(&url, &provider, &[command])).await;
        assert_eq!(code, 1, "{out}{error}");
        for part in [
            "search_path = \"$user\", public",
            "statement_timeout = 0",
            "connect_query = \"set search_path = 'pg_catalog'; set statement_timeout",
        ] {
            assert!(error.contains(part), "{command}: {part} is missing: {error}");
        }
    }
    // The remedy works.
    let mut connection = connect(&database.url).await;
    let name = text(&mut connection, "select current_database()::text").await;
    for setting in
        ["search_path = 'pg_catalog'", "statement_timeout = '30s'", "idle_in_transaction_session_timeout = '30s'", "jit = off"]
    {
        execute(&mut connection, &format!("alter database {name} set {setting}")).await;
    }
    let (code, out, error) = run(paypoll(&url, &provider, &["check"])).await;
    assert_eq!(code, 0, "{out}{error}");
}

#[tokio::test]
async fn a_database_in_another_encoding_is_refused_in_one_sentence_and_left_as_it_is() {
    let provider = Provider::start(1.0);
    let empty = empty_database().await;
    for (encoding, sql) in [("SQL_ASCII", "SQL_ASCII"), ("LATIN1", "LATIN1")] {
        let mut connection = connect(&empty).await;
        let name = text(&mut connection, "select current_database()::text").await;
        let other = format!("{name}_{}", encoding.to_lowercase());
        execute(&mut connection, &format!("create database {other} encoding '{sql}' locale 'C' template template0")).await;
        let url = empty.replace(&name, &other);
        for command in ["migrate", "check", "run", "status"] {
            let (code, _, error) = run(paypoll(&url, &provider, &[command])).await;
            let sentence = format!(
                "the database keeps text in {encoding}, paypoll needs UTF8: make one with `create database NAME encoding 'UTF8' template template0`\n"
            );
            assert_eq!((code, error), (1, sentence), "{command}");
        }
        let mut connection = connect(&url).await;
        assert_eq!(text(&mut connection, "select count(*)::text from pg_namespace where nspname = 'paypoll'").await, "0");
    }
}

#[tokio::test]
async fn check_and_run_name_the_right_that_is_missing() {
    let provider = Provider::start(1.0);
    let database = database().await;
    let (name, url) = login(&database, "").await;
    let mut owner = connect(&database.url).await;
    execute(
        &mut owner,
        &format!("grant usage on schema paypoll to {name}; grant select on all tables in schema paypoll to {name}"),
    )
    .await;
    let (code, out, error) = run(paypoll(&url, &provider, &["check"])).await;
    let start = format!(
        "the role {name} may not read and write the daemon's columns of paypoll.transactions (permission denied for table transactions)"
    );
    assert!(code == 1 && error.starts_with(&start) && error.contains("deploy/roles.sql"), "{out}{error}");
    let (code, _, error) = run(paypoll(&url, &provider, &["run"])).await;
    assert!(code == 1 && error.starts_with(&start), "{error}");

    execute(&mut owner, &format!("grant paypoll_daemon to {name}")).await;
    let (code, out, error) = run(paypoll(&url, &provider, &["check"])).await;
    assert!(code == 0 && out.contains("rights        tried"), "{out}{error}");

    execute(&mut owner, "revoke execute on function paypoll.prune_journal(date) from paypoll_daemon").await;
    let (code, _, error) = run(paypoll(&url, &provider, &["check"])).await;
    assert!(code == 1 && error.starts_with(&format!("the role {name} may not execute paypoll.prune_journal(date)")), "{error}");

    execute(&mut owner, &format!("{ROLES}; alter role {name} set default_transaction_read_only = on")).await;
    let (code, _, error) = run(paypoll(&url, &provider, &["check"])).await;
    assert!(code == 1 && error.contains("default_transaction_read_only"), "{error}");
    execute(&mut owner, &format!("drop owned by {name}; drop role {name}")).await;
}

#[tokio::test]
async fn row_security_that_hides_rows_is_refused_at_the_start_and_named() {
    let provider = Provider::start(1.0);
    let database = database().await;
    let (name, url) = login(&database, "in role paypoll_daemon").await;
    let mut owner = connect(&database.url).await;
    execute(&mut owner, "alter table paypoll.transactions enable row level security").await;
    for command in ["run", "check"] {
        let (code, _, error) = run(paypoll(&url, &provider, &[command])).await;
        let start =
            format!("row security hides the rows of paypoll.transactions from the role {name}, because no policy there is for it");
        assert!(code == 1 && error.starts_with(&start), "{command}: {error}");
    }
    execute(&mut owner, &format!("create policy paypoll on paypoll.transactions to {name} using (true) with check (true)")).await;
    let (code, out, error) = run(paypoll(&url, &provider, &["check"])).await;
    assert_eq!(code, 0, "{out}{error}");
    execute(&mut owner, &format!("drop owned by {name}; drop role {name}")).await;
}

#[tokio::test]
async fn what_the_server_says_about_a_connection_that_it_refuses_is_not_lost_in_the_pool() {
    let database = database().await;
    let (name, url) = login(&database, "connection limit 1 in role paypoll_daemon").await;
    let only = connect(&url).await;
    let store = open(&url, 4);
    let error = store.within(Duration::from_secs(30), store.server()).await.expect_err("no connection is left");
    assert!(error.to_string().contains(&format!("too many connections for role \"{name}\"")), "{error}");
    drop(only);
    let work = || async { store.within(Duration::from_secs(30), store.server()).await.ok() };
    eventually("a connection is free again", work).await;
    store.close().await;
    let mut owner = connect(&database.url).await;
    execute(&mut owner, &format!("drop owned by {name}; drop role {name}")).await;
}

#[tokio::test]
async fn an_address_with_a_parameter_that_would_not_be_obeyed_is_refused() {
    let provider = Provider::start(1.0);
    let database = database().await;
    let url = format!("{}{}channel_binding=require", database.url, if database.url.contains('?') { "&" } else { "?" });
    for command in ["run", "check", "migrate", "status"] {
        let (code, _, error) = run(paypoll(&url, &provider, &[command])).await;
        assert!(
            code == 2 && error.starts_with("database.url: the parameter channel_binding is not one that paypoll obeys"),
            "{command}: {error}"
        );
    }
    assert!(matches!(paypoll::store::migrate(&url).await, Err(SchemaError::Store(StoreError::Url(_)))));
}

#[tokio::test]
async fn no_part_of_the_schema_hangs_on_anything_outside_of_it_but_postgresqls_own() {
    let database = database().await;
    let mut connection = connect(&database.url).await;
    // Whatever defaults, checks, index expressions, trigger conditions and bodies depend on was
    // looked up when they were made.
    let foreign = "
        select string_agg(distinct d.refclassid::regclass || ' ' || d.refobjid, ', ')
          from pg_depend d
          left join pg_proc p on d.refclassid = 'pg_proc'::regclass and p.oid = d.refobjid
          left join pg_operator o on d.refclassid = 'pg_operator'::regclass and o.oid = d.refobjid
          left join pg_type t on d.refclassid = 'pg_type'::regclass and t.oid = d.refobjid
         where coalesce(p.pronamespace, o.oprnamespace, t.typnamespace) not in ('pg_catalog'::regnamespace, 'information_schema'::regnamespace, 'paypoll'::regnamespace)
           and d.classid in ('pg_attrdef'::regclass, 'pg_constraint'::regclass, 'pg_class'::regclass, 'pg_trigger'::regclass, 'pg_proc'::regclass)";
    assert_eq!(text(&mut connection, foreign).await, "");
    let roaming = "
        select string_agg(p.oid::regprocedure::text, ', ') from pg_proc p
         where p.pronamespace = 'paypoll'::regnamespace
           and not exists (select from unnest(p.proconfig) c where c in ('search_path=pg_catalog, pg_temp', 'search_path=pg_catalog'))";
    assert_eq!(text(&mut connection, roaming).await, "", "these look for functions where their caller does");
}

#[tokio::test]
async fn every_table_column_and_function_says_what_it_is() {
    let database = database().await;
    let mut connection = connect(&database.url).await;
    let silent = "
        select string_agg(what, ', ' order by what) from (
            select c.oid::regclass::text as what from pg_class c
             where c.relnamespace = 'paypoll'::regnamespace and c.relkind in ('r', 'p', 'v') and not c.relispartition
               and obj_description(c.oid, 'pg_class') is null
            union all
            select format('%s.%s', c.oid::regclass, a.attname) from pg_class c join pg_attribute a on a.attrelid = c.oid
             where c.relnamespace = 'paypoll'::regnamespace and c.relkind in ('r', 'p', 'v') and not c.relispartition
               and a.attnum > 0 and not a.attisdropped and col_description(c.oid, a.attnum) is null
            union all
            select p.oid::regprocedure::text from pg_proc p
             where p.pronamespace = 'paypoll'::regnamespace and obj_description(p.oid, 'pg_proc') is null) x";
    assert_eq!(text(&mut connection, silent).await, "");
}

/// The shell block under that heading of the runbook.
fn runbook(heading: &str) -> String {
    let page = include_str!("../../docs/runbook.md");
    let section = &page[page.find(heading).unwrap()..];
    let begin = section.find("```sh\n").unwrap() + "```sh\n".len();
    section[begin..][..section[begin..].find("```").unwrap()].to_owned()
}

#[tokio::test]
async fn rows_move_into_a_new_database_as_the_runbook_says() {
    let database = database().await;
    let mut from = connect(&database.url).await;
    execute(
        &mut from,
        "insert into paypoll.transactions (provider, reference, params) values ('dapi', 'R1', '{\"accessToken\": \"s\"}'), ('khalti', 'R2', '{}');
         select paypoll.settle('khalti', 'default', 'R2', 'succeeded');
         select paypoll.make_journal('2026-01-01', '2026-01-02');
         insert into paypoll.polls (transaction_id, provider, account, due_at, sent_at, outcome)
         select id, provider, account, '2026-01-02', '2026-01-02', 'pending' from paypoll.transactions;
         select paypoll.pause('khalti', 'default', 'until Monday')",
    )
    .await;
    execute(
        &mut from,
        "insert into paypoll.replicas (lease, complied) values ('15 s', 0), ('15 s', 0);
         update paypoll.transactions set fence = fence + 1, owner = (select max(id) from paypoll.replicas) where reference = 'R1'",
    )
    .await;
    let to = empty_database().await;
    let folder = std::env::temp_dir().join(format!("paypoll-restore-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let tools = text(&mut from, "select setting from pg_config where name = 'BINDIR'").await;
    let binary = std::path::Path::new(env!("CARGO_BIN_EXE_paypoll")).parent().unwrap().display().to_string();
    let mut shell = Command::new("sh");
    shell.args(["-euc", &runbook("### Into a new database")]).current_dir(&folder);
    shell.env("FROM", &database.url).env("TO", &to).env("PATH", format!("{tools}:{binary}:{}", std::env::var("PATH").unwrap()));
    let (code, _, error) = run(shell).await;
    assert_eq!(code, 0, "{error}");
    std::fs::remove_dir_all(&folder).unwrap();
    let mut to_there = connect(&to).await;
    for table in ["transactions", "transitions", "polls", "accounts"] {
        let rows = format!("select string_agg(t::text, ';' order by t::text) from paypoll.{table} t");
        assert_eq!(text(&mut to_there, &rows).await, text(&mut from, &rows).await, "{table}");
    }
    // No replica that registers there is taken for the owner of earlier claims.
    execute(&mut to_there, "insert into paypoll.replicas (lease, complied) values ('15 s', 0)").await;
    let later = "select (r.id > t.owner)::text from paypoll.replicas r, paypoll.transactions t where t.owner is not null";
    assert_eq!(text(&mut to_there, later).await, "true");
    let refusal =
        sqlx::raw_sql("update paypoll.transactions set state = 'failed' where reference = 'R2'").execute(&mut to_there).await;
    assert!(refusal.is_err(), "the triggers are on again");
}

#[tokio::test]
async fn a_settlement_can_be_prepared_and_comes_with_the_second_phase() {
    let settings = vec![("max_prepared_transactions".to_owned(), "5".to_owned())];
    let options = Options { settings, ..Options::default() };
    let cluster = tokio::task::spawn_blocking(move || PrivatePostgres::start_with(&options)).await.unwrap().unwrap();
    let url = cluster.admin_url();
    paypoll::store::migrate(&url).await.unwrap();
    let mut connection = connect(&url).await;
    execute(&mut connection, "insert into paypoll.transactions (provider, reference) values ('khalti', 'R1')").await;
    let settle = "select paypoll.settle('khalti', 'default', 'R1', 'succeeded')";
    let rung = sqlx::raw_sql(AssertSqlSafe(format!("begin; {settle}; prepare transaction 'first'"))).execute(&mut connection).await;
    assert!(rung.is_err_and(|error| error.to_string().contains("NOTIFY")), "as PostgreSQL documents");
    execute(&mut connection, "rollback").await;
    execute(&mut connection, &format!("begin; set local paypoll.notify = off; {settle}; prepare transaction 'second'")).await;
    let feed = "select string_agg(to_state, ',') from paypoll.transitions_since(0)";
    assert_eq!(text(&mut connection, feed).await, "");
    execute(&mut connection, "commit prepared 'second'").await;
    assert_eq!(text(&mut connection, feed).await, "succeeded");
    tokio::task::spawn_blocking(move || drop(cluster)).await.unwrap();
}
