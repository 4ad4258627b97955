//! The private PostgreSQL itself: that it serves, and that nothing of it stays.

use crate::support;
use paypoll::postgres::{BINARIES_VARIABLE, Options, PrivatePostgres};
use sqlx::{Connection, Executor, PgConnection};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// Set for a process that plays the owner of a cluster in another test.
const OWNER: &str = "PAYPOLL_TEST_OWNER";
/// Far longer than an end ever takes.
const END_TIMEOUT: Duration = Duration::from_secs(60);

async fn start(options: Options) -> PrivatePostgres {
    tokio::task::spawn_blocking(move || PrivatePostgres::start_with(&options))
        .await
        .unwrap()
        .unwrap_or_else(|error| panic!("{error}"))
}

async fn answer(connection: &mut PgConnection, query: &'static str) -> Result<String, sqlx::Error> {
    sqlx::query_scalar(query).fetch_one(connection).await
}

/// Waits until owner and watcher have released the folder, without polling: both hold its lock.
fn wait_until_released(lock: File) {
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || send.send(lock.lock()));
    receive.recv_timeout(END_TIMEOUT).expect("the watcher did not end").unwrap();
}

#[tokio::test]
async fn it_answers_in_utf8_and_two_of_them_do_not_meet() {
    let (first, second) = tokio::join!(start(Options::default()), start(Options::default()));
    let mut connections = Vec::new();
    for postgres in [&first, &second] {
        let mut connection = PgConnection::connect(&postgres.admin_url()).await.unwrap();
        assert_eq!(answer(&mut connection, "show server_encoding").await.unwrap(), "UTF8");
        connection.execute("create table mine (id int)").await.unwrap();
        connections.push(connection);
    }
    assert_ne!(first.folder(), second.folder());
    drop(first);
    assert_eq!(answer(&mut connections[1], "select 'still here'").await.unwrap(), "still here");
}

#[tokio::test]
async fn its_options_reach_the_server() {
    let settings = vec![("application_name".to_owned(), "it's ours".to_owned())];
    let (fast, durable) = tokio::join!(start(Options::default()), start(Options { durable: true, settings }));
    let mut fast = PgConnection::connect(&fast.admin_url()).await.unwrap();
    let mut durable = PgConnection::connect(&durable.admin_url()).await.unwrap();
    assert_eq!(answer(&mut fast, "show fsync").await.unwrap(), "off");
    assert_eq!(answer(&mut durable, "show fsync").await.unwrap(), "on");
    assert_eq!(answer(&mut durable, "show application_name").await.unwrap(), "it's ours");
}

#[tokio::test]
async fn dropping_it_ends_the_server_and_deletes_the_folder() {
    let postgres = start(Options::default()).await;
    let folder = postgres.folder().to_owned();
    let mut connection = PgConnection::connect(&postgres.admin_url()).await.unwrap();
    tokio::task::spawn_blocking(|| drop(postgres)).await.unwrap();
    assert!(!folder.exists());
    connection.ping().await.unwrap_err();
}

#[tokio::test]
async fn a_crash_breaks_connections_and_loses_nothing_that_was_committed() {
    let mut postgres = start(Options::default()).await;
    let url = postgres.admin_url();
    let mut connection = PgConnection::connect(&url).await.unwrap();
    connection.execute("create table kept as select 'committed' as word").await.unwrap();
    let mut postgres = tokio::task::spawn_blocking(move || postgres.crash().map(|()| postgres)).await.unwrap().unwrap();
    connection.ping().await.unwrap_err();
    PgConnection::connect(&url).await.unwrap_err();
    let _postgres = tokio::task::spawn_blocking(move || postgres.recover().map(|()| postgres)).await.unwrap().unwrap();
    let mut connection = PgConnection::connect(&url).await.unwrap();
    assert_eq!(answer(&mut connection, "select word from kept").await.unwrap(), "committed");
}

#[tokio::test]
async fn nothing_of_it_outlives_an_owner_that_was_killed() {
    const NAME: &str = "postgres::nothing_of_it_outlives_an_owner_that_was_killed";
    if std::env::var_os(OWNER).is_some() {
        let postgres = start(Options::default()).await;
        println!("\nowned {} {}", postgres.folder().display(), postgres.admin_url());
        std::future::pending::<()>().await;
    }
    let mut owner = this_test(NAME).env(OWNER, "1").stdout(Stdio::piped()).spawn().unwrap();
    let (folder, url) = owned(&mut owner);
    let mut connection = PgConnection::connect(&url).await.unwrap();
    assert_eq!(answer(&mut connection, "select 'alive'").await.unwrap(), "alive");
    let lock = File::open(&folder).unwrap();

    // SIGKILL: the owner cannot do anything any more.
    owner.kill().unwrap();
    owner.wait().unwrap();

    wait_until_released(lock);
    assert!(!folder.exists());
    connection.ping().await.unwrap_err();
}

#[test]
fn a_variable_that_leads_nowhere_is_named_in_the_error() {
    const NAME: &str = "postgres::a_variable_that_leads_nowhere_is_named_in_the_error";
    if std::env::var_os(OWNER).is_some() {
        println!("\nrefused {}", PrivatePostgres::start().unwrap_err());
        return;
    }
    let output = this_test(NAME).env(OWNER, "1").env(BINARIES_VARIABLE, "/no/such/folder").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains(&format!("refused {BINARIES_VARIABLE} is \"/no/such/folder\"")), "{text}");
}

#[tokio::test]
async fn every_test_has_a_database_of_its_own() {
    let (one, other) = tokio::join!(support::database(), support::database());
    one.pool.execute("create table mine (id int)").await.unwrap();
    other.pool.execute("create table mine (id int)").await.unwrap();
    let mut by_url = PgConnection::connect(&one.url).await.unwrap();
    assert_eq!(answer(&mut by_url, "select count(*)::text from mine").await.unwrap(), "0");
}

/// This binary, to run one test of its own.
fn this_test(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture"]);
    command
}

/// The folder and the URL that the owner prints when its cluster is up.
fn owned(owner: &mut Child) -> (PathBuf, String) {
    let lines = BufReader::new(owner.stdout.take().unwrap()).lines();
    let line = lines.map(Result::unwrap).find(|line| line.starts_with("owned ")).expect("the owner could not start a cluster");
    let mut words = line.split(' ').skip(1);
    (Path::new(words.next().unwrap()).to_owned(), words.next().unwrap().to_owned())
}
