//! Several hosts in one connection string, as libpq reads them: which of them is used.
//!
//! A keeper stays connected to the host that is used and notices within a second when it is gone or
//! takes no writes any more; then it tries the hosts in turn until one is suitable, and directs the
//! pool there. None of this happens where a single host is named without any requirement.

use super::errors::{StoreError, words};
use super::session::connect_options;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, Connection};
use std::time::Duration;

/// A host that has not answered within this time is skipped.
const HOST_TIMEOUT: Duration = Duration::from_secs(2);
/// How often the keeper checks that the host in use is still suitable, and how long it waits
/// between two rounds of all hosts.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The requirement on a host: `target_session_attrs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// It can be reached.
    Any,
    /// It is no standby.
    Primary,
    /// Its sessions can write.
    ReadWrite,
}

impl Wanted {
    fn named(name: &str) -> Result<Self, StoreError> {
        match name {
            "any" => Ok(Self::Any),
            "primary" => Ok(Self::Primary),
            "read-write" => Ok(Self::ReadWrite),
            other => {
                Err(StoreError::Url(format!("target_session_attrs = {other:?} is not obeyed: any, read-write and primary are")))
            }
        }
    }

    /// The query for what keeps a host from being used; null where nothing does.
    const fn question(self) -> &'static str {
        match self {
            Self::Any => "select null::text",
            Self::Primary => "select case when pg_is_in_recovery() then 'it is a standby' end",
            Self::ReadWrite => {
                "select case when pg_is_in_recovery() then 'it is a standby'
                             when current_setting('transaction_read_only') = 'on' then 'its sessions are read-only' end"
            }
        }
    }
}

/// The hosts of a connection string, and the requirement on the one that is used.
#[derive(Clone, Debug)]
pub(super) struct Hosts {
    all: Vec<PgConnectOptions>,
    wanted: Wanted,
}

impl Hosts {
    /// Reads a connection string; `settings` are for every session.
    pub(super) fn of(url: &str, settings: &[(&str, &str)]) -> Result<Self, StoreError> {
        let (urls, wanted) = expanded(url)?;
        let options = |url: &String| connect_options(url).map(|options| options.options(settings.iter().copied()));
        let all = urls.iter().map(options).collect::<Result<Vec<_>, _>>()?;
        let default = if all.len() > 1 { Wanted::ReadWrite } else { Wanted::Any };
        Ok(Self { all, wanted: wanted.unwrap_or(default) })
    }

    /// Whether there is nothing to choose and nothing to check.
    pub(super) fn is_plain(&self) -> bool {
        self.all.len() == 1 && self.wanted == Wanted::Any
    }

    pub(super) fn options(&self, host: usize) -> &PgConnectOptions {
        &self.all[host]
    }

    /// The first suitable host, beginning with `first`, and a session there. An error says for each
    /// host why it is not used.
    pub(super) async fn find(&self, first: usize) -> Result<(usize, PgConnection), StoreError> {
        let mut refused = Vec::new();
        for host in (0..self.all.len()).map(|next| (first + next) % self.all.len()) {
            match self.connect(host).await {
                Ok(connection) => return Ok((host, connection)),
                Err(why) => refused.push((host, why)),
            }
        }
        refused.sort_unstable_by_key(|(host, _)| *host);
        let all: Vec<String> = refused.iter().map(|(host, why)| format!("{}: {why}", place(&self.all[*host]))).collect();
        Err(StoreError::NoHost(all.join("; ")))
    }

    async fn connect(&self, host: usize) -> Result<PgConnection, String> {
        let attempt = tokio::time::timeout(HOST_TIMEOUT, async {
            let mut connection = PgConnection::connect_with(&self.all[host]).await.map_err(|error| words(&error))?;
            self.check(&mut connection).await?;
            Ok(connection)
        });
        attempt.await.unwrap_or_else(|_| Err(format!("no answer within {} s", HOST_TIMEOUT.as_secs())))
    }

    async fn check(&self, connection: &mut PgConnection) -> Result<(), String> {
        let asked = sqlx::query_scalar(AssertSqlSafe(self.wanted.question())).fetch_one(connection);
        let why: Option<String> = asked.await.map_err(|error| words(&error))?;
        why.map_or(Ok(()), Err)
    }

    /// Returns when the host of this session is no longer suitable.
    pub(super) async fn watch(&self, connection: &mut PgConnection) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let checked = tokio::time::timeout(HOST_TIMEOUT, self.check(connection)).await;
            if !matches!(checked, Ok(Ok(()))) {
                return;
            }
        }
    }

    /// Where the database is, for people.
    pub(super) fn address(&self) -> String {
        let places: Vec<String> = self.all.iter().map(place).collect();
        let places = places.join(" or ");
        self.all[0].get_database().map_or_else(|| places.clone(), |name| format!("{places}, database {name},"))
    }
}

/// Host and port, or the socket's folder.
fn place(options: &PgConnectOptions) -> String {
    match options.get_socket() {
        Some(folder) => folder.display().to_string(),
        None => format!("{}:{}", options.get_host(), options.get_port()),
    }
}

/// One connection string for each host, and the requirement on them.
fn expanded(url: &str) -> Result<(Vec<String>, Option<Wanted>), StoreError> {
    let (head, query) = url.split_once('?').unwrap_or((url, ""));
    let (mut kept, mut lists, mut wanted) = (Vec::new(), Lists::default(), None);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let list = || percent_decode_str(value).decode_utf8_lossy().split(',').map(str::to_owned).collect();
        match key {
            "target_session_attrs" => wanted = Some(Wanted::named(&percent_decode_str(value).decode_utf8_lossy())?),
            "host" => lists.hosts = list(),
            "hostaddr" => lists.addresses = list(),
            "port" => lists.ports = list(),
            _ => kept.push(pair),
        }
    }
    let (scheme, rest) = head.split_once("://").unwrap_or(("postgres", head));
    let (authority, path) = rest.find('/').map_or((rest, ""), |slash| rest.split_at(slash));
    let (user, places) = authority.rsplit_once('@').map_or(("", authority), |(user, places)| (user, places));
    let places: Vec<&str> = places.split(',').collect();
    let count = lists.check(&places)?;
    let urls = (0..count).map(|host| {
        let at = if user.is_empty() { "" } else { "@" };
        let mut parameters: Vec<String> = kept.iter().map(|pair| (*pair).to_owned()).collect();
        for (key, list) in [("host", &lists.hosts), ("hostaddr", &lists.addresses), ("port", &lists.ports)] {
            if let Some(value) = list.get(host).or(list.first()) {
                parameters.push(format!("{key}={}", utf8_percent_encode(value, NON_ALPHANUMERIC)));
            }
        }
        let place = places.get(host).unwrap_or(&places[0]);
        let mark = if parameters.is_empty() { "" } else { "?" };
        format!("{scheme}://{user}{at}{place}{path}{mark}{}", parameters.join("&"))
    });
    Ok((urls.collect(), wanted))
}

/// The parameters that may name one for each host.
#[derive(Default)]
struct Lists {
    hosts: Vec<String>,
    addresses: Vec<String>,
    ports: Vec<String>,
}

impl Lists {
    /// How many hosts there are; `places` are those before the path. Errors unless all lists fit together.
    fn check(&self, places: &[&str]) -> Result<usize, StoreError> {
        let hosts: Vec<&str> = if !self.hosts.is_empty() {
            self.hosts.iter().map(String::as_str).collect()
        } else if self.addresses.is_empty() || places.len() > 1 {
            places.to_vec()
        } else {
            self.addresses.iter().map(String::as_str).collect()
        };
        let count = hosts.len();
        let is_empty = |host: &str| host.is_empty() || host.starts_with(':');
        if count > 1 && hosts.iter().any(|host| is_empty(host)) {
            return Err(StoreError::Url(format!("of its {count} hosts one is empty: take the comma out, or name the host")));
        }
        if !self.addresses.is_empty() && self.addresses.len() != count {
            let addresses = self.addresses.len();
            return Err(StoreError::Url(format!("it has {count} hosts and {addresses} addresses (hostaddr): give one for each")));
        }
        if self.ports.len() > 1 && self.ports.len() != count {
            let ports = self.ports.len();
            return Err(StoreError::Url(format!("it has {count} hosts and {ports} ports: give one port, or one for each host")));
        }
        let inline = places.iter().filter(|_| count > 1).map(|place| port_of(place));
        for port in inline.chain(self.ports.iter().map(|port| Some(port.as_str()))).flatten() {
            if !port.parse::<u16>().is_ok_and(|port| port > 0) {
                return Err(StoreError::Url(format!("{port:?} is no port: a number from 1 to 65535 is")));
            }
        }
        Ok(count)
    }
}

/// The port of `host:port`.
fn port_of(place: &str) -> Option<&str> {
    let after = place.rfind(']').map_or(0, |bracket| bracket + 1);
    place[after..].split_once(':').map(|(_, port)| port)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(url: &str) -> Result<Vec<String>, String> {
        let hosts = Hosts::of(url, &[]).map_err(|error| error.to_string())?;
        Ok(hosts.all.iter().map(place).collect())
    }

    #[test]
    fn every_host_has_its_port_and_all_share_the_rest() {
        let hosts = Hosts::of("postgres://u:p%2Fw@a:5433,[::1],c:5435/db?sslmode=disable", &[]).unwrap();
        assert_eq!(hosts.all.iter().map(place).collect::<Vec<_>>(), ["a:5433", "[::1]:5432", "c:5435"]);
        assert!(hosts.all.iter().all(|one| one.get_database() == Some("db") && one.get_username() == "u"));
        assert_eq!(hosts.address(), "a:5433 or [::1]:5432 or c:5435, database db,");
        assert_eq!(places("postgres:///db?host=a,b&port=6000").unwrap(), ["a:6000", "b:6000"]);
        assert_eq!(places("postgres://u@x/db?host=a,%2Ftmp&port=6000,6001").unwrap(), ["a:6000", "/tmp"]);
        assert_eq!(places("postgres://a,b/db?hostaddr=127.0.0.1,127.0.0.2").unwrap(), ["127.0.0.1:5432", "127.0.0.2:5432"]);
    }

    #[test]
    fn several_hosts_are_searched_for_one_that_takes_writes_unless_any_will_do() {
        let wanted = |url: &str| Hosts::of(url, &[]).unwrap().wanted;
        assert_eq!(wanted("postgres://a/db"), Wanted::Any);
        assert!(Hosts::of("postgres://a/db", &[]).unwrap().is_plain());
        assert_eq!(wanted("postgres://a,b/db"), Wanted::ReadWrite);
        assert_eq!(wanted("postgres://a,b/db?target_session_attrs=any"), Wanted::Any);
        assert_eq!(wanted("postgres://a/db?target_session_attrs=primary"), Wanted::Primary);
        assert!(!Hosts::of("postgres://a/db?target_session_attrs=read-write", &[]).unwrap().is_plain());
    }

    #[test]
    fn what_does_not_fit_together_is_named_without_the_password() {
        for (url, said) in [
            ("postgres://u:canary@a,,b/db", "of its 3 hosts one is empty"),
            ("postgres://u:canary@a,:5433/db", "of its 2 hosts one is empty"),
            ("postgres://u:canary@x/db?host=a,", "of its 2 hosts one is empty"),
            ("postgres://u:canary@a,b/db?port=1,2,3", "it has 2 hosts and 3 ports"),
            ("postgres://u:canary@a,b/db?hostaddr=127.0.0.1", "it has 2 hosts and 1 addresses"),
            ("postgres://u:canary@a:1,b:port/db", "\"port\" is no port"),
            ("postgres://u:canary@a,b/db?port=70000", "\"70000\" is no port"),
            ("postgres://u:canary@a,b/db?target_session_attrs=standby", "target_session_attrs = \"standby\" is not obeyed"),
            ("postgres://u:canary@a,b/db?target_session_attrs=", "target_session_attrs = \"\" is not obeyed"),
        ] {
            let error = places(url).unwrap_err();
            assert!(error.starts_with("database.url: ") && error.contains(said) && !error.contains("canary"), "{url}: {error}");
        }
    }
}
