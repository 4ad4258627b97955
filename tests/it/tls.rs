//! TLS to PostgreSQL under a private certificate authority: a server that the authority vouches for
//! is used, any other is not.

use paypoll::postgres::{Options, PrivatePostgres};
use sqlx::{Connection, Executor, PgConnection};
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A server that also listens on the network, and there with a certificate for `localhost`.
struct Server {
    postgres: PrivatePostgres,
    port: u16,
}

impl Server {
    fn start() -> Self {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let settings = [("listen_addresses", "127.0.0.1"), ("port", &port.to_string())];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let postgres = PrivatePostgres::start_with(&Options { settings, ..Options::default() }).unwrap();
        for (name, fixture) in [("server.crt", "server.pem"), ("server.key", "server.key")] {
            lay(postgres.folder(), name, &fs::read(fixtures().join(fixture)).unwrap());
        }
        // Over the network with TLS or not at all.
        lay(postgres.folder(), "pg_hba.conf", b"local all all trust\nhostssl all all 127.0.0.1/32 trust\n");
        Self { postgres, port }
    }

    async fn switch_tls_on(&self) {
        let url = self.postgres.admin_url().replacen("5432", &self.port.to_string(), 1);
        let mut connection = PgConnection::connect(&url).await.unwrap();
        connection.execute("alter system set ssl = on").await.unwrap();
        connection.execute("select pg_reload_conf()").await.unwrap();
        connection.close().await.unwrap();
    }

    fn url(&self, host: &str, options: &str) -> String {
        format!("postgres://postgres:CANARY@{host}:{}/postgres?{options}", self.port)
    }
}

/// A file of the server's, which no other user may read: else it refuses the key.
fn lay(folder: &Path, name: &str, content: &[u8]) {
    let (path, owner) = (folder.join("data").join(name), fs::metadata(folder).unwrap());
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    chown(&path, Some(owner.uid()), Some(owner.gid())).unwrap();
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tls")
}

/// `sslmode` and the authority's certificate.
fn verified(mode: &str, authority: &str) -> String {
    format!("sslmode={mode}&sslrootcert={}", fixtures().join(authority).display())
}

/// The command's exit code and what it says on stderr.
async fn paypoll(command: &'static str, url: &str) -> (i32, String) {
    let mut command_line = Command::new(env!("CARGO_BIN_EXE_paypoll"));
    command_line.env_clear().env("DATABASE_URL", url).arg(command).stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command_line.output()).await.unwrap().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

#[tokio::test]
async fn only_a_server_that_the_private_authority_vouches_for_is_talked_to() {
    let server = tokio::task::spawn_blocking(Server::start).await.unwrap();
    let (plain, full) = (server.url("localhost", "sslmode=disable"), server.url("localhost", &verified("verify-full", "ca.pem")));
    server.switch_tls_on().await;
    let (code, error) = paypoll("migrate", &full).await;
    assert_eq!((code, error.as_str()), (0, ""));
    assert_eq!(paypoll("status", &full).await, (0, String::new()));
    let mut connection = PgConnection::connect(&full).await.unwrap();
    let encrypted: bool =
        sqlx::query_scalar("select ssl from pg_stat_ssl where pid = pg_backend_pid()").fetch_one(&mut connection).await.unwrap();
    assert!(encrypted);
    connection.close().await.unwrap();
    for (url, words) in [
        (plain, "no encryption"),
        (server.url("localhost", &verified("verify-full", "other_ca.pem")), "UnknownIssuer"),
        (server.url("localhost", "sslmode=verify-full"), "UnknownIssuer"),
        (server.url("127.0.0.1", &verified("verify-full", "ca.pem")), "not valid for name"),
        (server.url("localhost", &verified("verify-full", "no_such.pem")), "no_such.pem"),
    ] {
        for command in ["status", "migrate"] {
            let (code, error) = paypoll(command, &url).await;
            // A file that is not there is the configuration's mistake.
            assert_eq!(code, if words == "no_such.pem" { 2 } else { 1 }, "{command} {url}: {error}");
            assert!(
                error.matches(words).count() == 1 && error.lines().count() == 1 && !error.contains("CANARY"),
                "{command} {url}: {error}"
            );
        }
    }
    // Of the authority alone, whatever the name is.
    assert_eq!(paypoll("status", &server.url("127.0.0.1", &verified("verify-ca", "ca.pem"))).await.0, 0);
}
