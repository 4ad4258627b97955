//! A private PostgreSQL for `demo` and the tests: found, started, and always removed.
//!
//! One cluster in one temporary folder, reached through a Unix socket inside it, so that there is
//! no port to collide on and no other user can connect. It never touches a cluster that the machine
//! may already have. Everything here blocks: call it from a plain thread, or from
//! `tokio::task::spawn_blocking`.
//!
//! Removal does not depend on this process ending well. Beside the server runs a watcher, a few
//! lines of `sh` that read a pipe whose other end only we hold. The pipe closes when we are done,
//! and just as well after a panic, a Ctrl-C or a `kill -9`; then the watcher ends the server and
//! deletes the folder. Both it and the server have their own process group, so that a Ctrl-C in the
//! terminal reaches us alone and the server lives until we have finished with it. Folders whose
//! watcher was killed too are swept at the next start: the watcher and its owner hold a lock on
//! their folder, and an unlocked one belongs to nobody.

use crate::wire;
use rustix::process::{Pid, Signal, geteuid, kill_process};
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The variable that names the folder of `postgres` and `initdb`, before any other place is
/// searched.
pub const BINARIES_VARIABLE: &str = "PAYPOLL_POSTGRES_BIN";
/// The oldest major version that is accepted: the oldest that the migrations are tested with.
pub const OLDEST: u32 = 15;

/// A start takes 1–2 s, up to 8 s on a loaded machine.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// An immediate shutdown kills what has not ended after 5 s.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
/// How often a state is checked that is not announced.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How much of the server's log an error quotes.
const LOG_TAIL: usize = 2000;
/// Every folder's name begins with it; the sweep goes by it.
const FOLDER_PREFIX: &str = "paypoll-pg-";
/// How many names are tried for a folder.
const MAX_NAMES: usize = 100;
/// A socket's whole path must stay below 104 bytes (macOS; Linux: 108), of which folder and socket
/// name take up to 40.
const MAX_PARENT: usize = 60;

/// Waits for its owner's end, then ends the server, if one still runs, and deletes the folder.
///
/// The server is found through the process id in its own `postmaster.pid`, which it deletes as the
/// last thing it does. A postmaster that has not written it yet finds its folder gone and gives up.
/// `CONT` wakes a stopped server, so that it hears the `QUIT`.
const WATCHER: &str = r#"
trap '' HUP INT TERM
read -r _
if read -r server <"$1/data/postmaster.pid" && kill -QUIT "$server"; then
    kill -CONT "$server"
    tries=200
    while [ -e "$1/data/postmaster.pid" ] && [ "$((tries -= 1))" -gt 0 ]; do sleep 0.1; done
fi
tries=50
until rm -rf "$1" || [ "$((tries -= 1))" -eq 0 ]; do sleep 0.1; done
"#;

/// Why there is no private PostgreSQL. Each is one sentence, with the server's own message where
/// there is one.
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    /// No usable binaries anywhere. Says where they come from.
    #[error(
        "no PostgreSQL {OLDEST} or later was found: install your distribution's server package (Debian: `apt-get install postgresql`), \
         run ./demo or ./test which bring the binaries, or set {BINARIES_VARIABLE} to the folder that holds `postgres` and `initdb`"
    )]
    NotFound,
    /// The explicit variable names something else.
    #[error("{BINARIES_VARIABLE} is {0:?}, where no PostgreSQL {OLDEST} or later is that the server's user may run")]
    BadVariable(PathBuf),
    /// We are root, the server refuses to run as root, and there is no other user to run it.
    #[error("PostgreSQL refuses to run as root, and there is neither a user `postgres` nor a user `nobody` to run it as")]
    NoUser,
    /// Nowhere to put the data.
    #[error("no temporary folder was found that the server's user may enter and write, neither $TMPDIR nor /tmp nor /var/tmp")]
    NoFolder,
    /// The operating system refused something.
    #[error("cannot {what}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// `initdb` or `postgres` ended where it should not have.
    #[error("{program} ended with {status}; its last words:\n{log}")]
    Ended {
        /// Which of the two.
        program: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// The end of its log.
        log: String,
    },
    /// Neither ready nor ended.
    #[error("{program} was not done after {} s; its last words:\n{log}", timeout.as_secs())]
    Timeout {
        /// Which program.
        program: &'static str,
        /// How long it was given.
        timeout: Duration,
        /// The end of its log.
        log: String,
    },
}

/// How the server is run. The default is for work that may be lost with the machine: nothing waits
/// for the disk.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Whether commits wait for the disk, as a real server's do: for measurements. Either way they
    /// survive [`PrivatePostgres::crash`].
    pub durable: bool,
    /// Further server settings, by their names in `postgresql.conf`; they win over ours.
    pub settings: Vec<(String, String)>,
}

/// A running private cluster. Dropping it ends the server and deletes everything it wrote.
#[derive(Debug)]
pub struct PrivatePostgres {
    folder: PathBuf,
    user: User,
    arguments: Vec<String>,
    binaries: PathBuf,
    options: Options,
    /// `None` between [`crash`](Self::crash) and [`recover`](Self::recover).
    server: Option<Child>,
    watcher: Watcher,
}

impl PrivatePostgres {
    /// Starts one with the default options. Takes about a second.
    ///
    /// # Errors
    /// Where it cannot be started: see [`PostgresError`]. Nothing stays behind then either.
    pub fn start() -> Result<Self, PostgresError> {
        Self::start_with(&Options::default())
    }

    /// Starts one: UTF-8, the C locale, a superuser `postgres` without a password, 200 connections.
    ///
    /// # Errors
    /// Where it cannot be started: see [`PostgresError`]. Nothing stays behind then either.
    pub fn start_with(options: &Options) -> Result<Self, PostgresError> {
        let user = User::of_server()?;
        let mut postgres = Self::without_data(user, find_binaries(user)?, options)?;
        postgres.initialise()?;
        postgres.recover()?;
        Ok(postgres)
    }

    fn without_data(user: User, binaries: PathBuf, options: &Options) -> Result<Self, PostgresError> {
        let (folder, lock) = create_folder(user)?;
        let watcher = Watcher::spawn(&folder, user, lock)?;
        let arguments = arguments(&folder, options);
        Ok(Self { arguments, folder, user, binaries, options: options.clone(), server: None, watcher })
    }

    /// Copies it as it runs, into a cluster of its own, which does not run before it is started
    /// with [`recover`](Self::recover). As a standby that one follows this one until it is
    /// promoted; otherwise it knows nothing that happens from now on.
    ///
    /// # Errors
    /// Where it cannot be copied: see [`PostgresError`].
    pub fn backup(&self, standby: bool) -> Result<Self, PostgresError> {
        let copy = Self::without_data(self.user, self.binaries.clone(), &self.options)?;
        let (program, source, data) =
            ("pg_basebackup", self.folder.display().to_string(), copy.folder.join("data").display().to_string());
        let mut arguments =
            vec!["-h", &source, "-p", "5432", "-U", "postgres", "-D", &data, "-X", "stream", "-c", "fast", "--no-sync"];
        arguments.extend(standby.then_some("-R"));
        let status = copy.wait(&mut copy.spawn(program, arguments)?, program, START_TIMEOUT)?;
        if status.success() { Ok(copy) } else { Err(PostgresError::Ended { program, status, log: copy.log_tail() }) }
    }

    /// The URL of a database in this cluster, existing or to be created, in the form that sqlx and
    /// psql both take.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        // The host before the `?` is for URL parsers alone. What the environment might say instead
        // (PGPORT, PGSSLMODE) is said here.
        let (database, folder) = (wire::encoded(database), self.folder.display());
        format!("postgres://postgres@localhost:5432/{database}?host={folder}&sslmode=disable")
    }

    /// The URL of the database `postgres`, which is always there: for `create database`.
    #[must_use]
    pub fn admin_url(&self) -> String {
        self.url("postgres")
    }

    /// The folder that holds all of it: the socket, the data, and the server's `log`.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Ends the server at once, as if it had crashed, and keeps its data: connections break, new
    /// ones are refused. What was committed is there again after [`recover`](Self::recover).
    /// Without effect where it does not run.
    ///
    /// # Errors
    /// Where the server does not end in time.
    pub fn crash(&mut self) -> Result<(), PostgresError> {
        let Some(mut server) = self.server.take() else { return Ok(()) };
        // Unreaped, so the id is still its own. One that has ended already needs no signal: a
        // refusal says nothing.
        let pid = Pid::from_child(&server);
        let _ = kill_process(pid, Signal::QUIT);
        let _ = kill_process(pid, Signal::CONT);
        self.wait(&mut server, "postgres", STOP_TIMEOUT).map(drop)
    }

    /// Starts the server again after [`crash`](Self::crash), on the same data under the same URLs.
    /// Without effect where it runs.
    ///
    /// # Errors
    /// Where the server ends, or is not ready in time.
    pub fn recover(&mut self) -> Result<(), PostgresError> {
        if self.server.is_none() {
            let mut server = self.spawn("postgres", &self.arguments)?;
            let ready = self.wait_until_ready(&mut server);
            self.server = Some(server);
            ready?;
        }
        Ok(())
    }

    /// Ends the server and deletes the folder, as dropping does; it only reads better.
    pub fn stop(self) {}

    fn initialise(&self) -> Result<(), PostgresError> {
        let data = self.folder.join("data").display().to_string();
        let arguments = ["-D", &data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"];
        let status = self.wait(&mut self.spawn("initdb", arguments)?, "initdb", START_TIMEOUT)?;
        if status.success() { Ok(()) } else { Err(PostgresError::Ended { program: "initdb", status, log: self.log_tail() }) }
    }

    fn spawn(&self, program: &str, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<Child, PostgresError> {
        let what = || format!("start {program} in {}", self.binaries.display());
        let log = File::options().create(true).append(true).open(self.folder.join("log")).map_err(io_error(what))?;
        let again = log.try_clone().map_err(io_error(what))?;
        let mut command = self.user.command(self.binaries.join(program), &self.folder);
        command.args(arguments).stdin(Stdio::null()).stdout(log).stderr(again).spawn().map_err(io_error(what))
    }

    /// Line 8 of `postmaster.pid` says `ready` as soon as connections are taken, and `standby`
    /// where they may only read.
    fn wait_until_ready(&self, server: &mut Child) -> Result<(), PostgresError> {
        let program = "postgres";
        let pid_file = self.folder.join("data/postmaster.pid");
        let deadline = Instant::now() + START_TIMEOUT;
        while Instant::now() < deadline {
            let text = fs::read_to_string(&pid_file).unwrap_or_default();
            // A crash leaves an old file behind: the first line shows whose it is.
            if text.lines().next() == Some(&server.id().to_string())
                && text.lines().nth(7).is_some_and(|l| ["ready", "standby"].contains(&l.trim()))
            {
                return Ok(());
            }
            if let Some(status) = server.try_wait().map_err(io_error(|| format!("wait for {program}")))? {
                return Err(PostgresError::Ended { program, status, log: self.log_tail() });
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Err(PostgresError::Timeout { program, timeout: START_TIMEOUT, log: self.log_tail() })
    }

    fn wait(&self, child: &mut Child, program: &'static str, timeout: Duration) -> Result<ExitStatus, PostgresError> {
        wait(child, timeout).map_err(io_error(|| format!("wait for {program}")))?.ok_or_else(|| PostgresError::Timeout {
            program,
            timeout,
            log: self.log_tail(),
        })
    }

    fn log_tail(&self) -> String {
        let log = fs::read(self.folder.join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log[log.len().saturating_sub(LOG_TAIL)..]).trim_end().to_owned()
    }
}

impl Drop for PrivatePostgres {
    fn drop(&mut self) {
        // Errors have no receiver here, and what has not ended in time is killed.
        let _ = self.crash();
        self.watcher.dismiss();
    }
}

/// The process that outlives us. See [`WATCHER`].
#[derive(Debug)]
struct Watcher {
    process: Child,
    /// Our end of the pipe. Nothing is ever written to it.
    leash: Option<ChildStdin>,
    /// The folder's lock, until we have ended; the watcher holds it as its standard output, until it has.
    _lock: File,
}

impl Watcher {
    fn spawn(folder: &Path, user: User, lock: File) -> Result<Self, PostgresError> {
        let spawned = lock.try_clone().and_then(|lock| {
            let mut command = user.command("/bin/sh", Path::new("/"));
            command.args(["-c", WATCHER, "paypoll-watcher"]).arg(folder);
            command.stdin(Stdio::piped()).stdout(lock).stderr(Stdio::null()).spawn()
        });
        match spawned {
            Ok(mut process) => Ok(Self { leash: process.stdin.take(), process, _lock: lock }),
            Err(source) => {
                let _ = fs::remove_dir_all(folder);
                Err(PostgresError::Io { what: "start /bin/sh".into(), source })
            }
        }
    }

    fn dismiss(&mut self) {
        drop(self.leash.take());
        let _ = wait(&mut self.process, STOP_TIMEOUT);
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.dismiss();
    }
}

/// Whom the server runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum User {
    /// Ourselves.
    Same,
    /// Someone unprivileged, because we are root.
    Other { uid: u32, gid: u32 },
}

impl User {
    fn of_server() -> Result<Self, PostgresError> {
        if !geteuid().is_root() {
            return Ok(Self::Same);
        }
        // Only users with an entry in the user database: initdb wants to know its own name.
        let other = |name| Some(Self::Other { uid: id("-u", name)?, gid: id("-g", name)? });
        other("postgres").or_else(|| other("nobody")).ok_or(PostgresError::NoUser)
    }

    /// A command run as this user in a folder it may enter, in a process group of its own, knowing
    /// of our environment only where programs and libraries are: no PGPORT, no locale, no secrets.
    fn command(self, program: impl AsRef<OsStr>, folder: &Path) -> Command {
        let mut command = Command::new(program);
        let kept = ["PATH", "LD_LIBRARY_PATH"].into_iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
        command.env_clear().envs(kept).env("LC_ALL", "C").current_dir(folder).process_group(0);
        if let Self::Other { uid, gid } = self {
            // Supplementary groups go with the switch.
            command.uid(uid).gid(gid);
        }
        command
    }

    /// Whether this user may enter a folder and all above it. For our own user the attempt will
    /// show it.
    fn may_enter(self, folder: &Path) -> bool {
        self == Self::Same || folder.ancestors().all(|folder| fs::metadata(folder).is_ok_and(|m| m.mode() & 0o001 != 0))
    }

    /// Makes this user the owner of a new, empty folder, or removes it.
    fn give(self, folder: &Path) -> Result<(), PostgresError> {
        let Self::Other { uid, gid } = self else { return Ok(()) };
        chown(folder, Some(uid), Some(gid)).map_err(|source| {
            let _ = fs::remove_dir(folder);
            PostgresError::Io { what: format!("give {} to the server's user", folder.display()), source }
        })
    }

    /// Whether this user may create and delete folders in one.
    fn may_write(self, folder: &Path) -> bool {
        self == Self::Same || fs::metadata(folder).is_ok_and(|m| m.mode() & 0o002 != 0)
    }
}

fn id(what: &str, name: &str) -> Option<u32> {
    let output = Command::new("id").args([what, name]).stderr(Stdio::null()).output().ok()?;
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}

fn arguments(folder: &Path, options: &Options) -> Vec<String> {
    let mut settings = vec![
        ("listen_addresses".to_owned(), String::new()),
        ("unix_socket_directories".into(), folder.display().to_string()),
        ("port".into(), "5432".into()),
        ("max_connections".into(), "200".into()),
    ];
    if !options.durable {
        // What is committed still survives a crash of the server: only the machine's power can lose it.
        settings.extend(["fsync", "full_page_writes"].map(|name| (name.to_owned(), "off".to_owned())));
    }
    settings.extend(options.settings.iter().cloned());
    let settings = settings.into_iter().flat_map(|(name, value)| ["-c".to_owned(), format!("{name}={value}")]);
    ["-D".to_owned(), folder.join("data").display().to_string()].into_iter().chain(settings).collect()
}

/// The first folder with binaries new enough, which `user` may run.
fn find_binaries(user: User) -> Result<PathBuf, PostgresError> {
    let usable =
        |folder: &PathBuf| user.may_enter(folder) && ["postgres", "initdb"].iter().all(|name| is_new_enough(&folder.join(name)));
    if let Some(folder) = std::env::var_os(BINARIES_VARIABLE).filter(|v| !v.is_empty()) {
        let folder = PathBuf::from(folder);
        return real_folder(&folder).filter(usable).ok_or(PostgresError::BadVariable(folder));
    }
    candidates().into_iter().filter_map(|folder| real_folder(&folder)).find(usable).ok_or(PostgresError::NotFound)
}

/// Where binaries may be, best first.
fn candidates() -> Vec<PathBuf> {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let cache = std::env::var_os("XDG_CACHE_HOME").filter(|v| !v.is_empty()).map_or_else(|| home.join(".cache"), PathBuf::from);
    let mut folders: Vec<_> = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
    for (parent, prefix, rest) in [
        ("/usr/lib/postgresql", "", "bin"),                          // Debian, Ubuntu
        ("/usr", "pgsql-", "bin"),                                   // PostgreSQL's own packages for Red Hat and SUSE
        ("/opt/homebrew/opt", "postgresql@", "bin"),                 // Homebrew, Apple silicon
        ("/usr/local/opt", "postgresql@", "bin"),                    // Homebrew, Intel
        ("/Applications/Postgres.app/Contents/Versions", "", "bin"), // Postgres.app
    ] {
        folders.extend(by_version(Path::new(parent), prefix).into_iter().map(|folder| folder.join(rest)));
    }
    folders.push("/usr/local/pgsql/bin".into());
    // Where scripts/postgres puts what it downloads: the second for root, whose home is closed to
    // the server's user.
    folders.extend([cache.join("paypoll/postgres/bin"), "/var/cache/paypoll/postgres/bin".into()]);
    folders
}

/// The folders in `parent` named `prefix` and a version number, the highest first.
fn by_version(parent: &Path, prefix: &str) -> Vec<PathBuf> {
    let number = |path: &Path| path.file_name()?.to_str()?.strip_prefix(prefix)?.parse::<u32>().ok();
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries.filter_map(|entry| Some((number(&entry.path())?, entry.path()))).collect();
    found.sort_by(|a, b| b.cmp(a));
    found.into_iter().map(|(_, path)| path).collect()
}

/// The folder that really holds `postgres`: called through a symbolic link from elsewhere, it does
/// not find its own files.
fn real_folder(folder: &Path) -> Option<PathBuf> {
    Some(fs::canonicalize(folder.join("postgres")).ok()?.parent()?.to_owned())
}

/// Whether a program runs here at all, and says that it is new enough.
fn is_new_enough(program: &Path) -> bool {
    let output = Command::new(program).arg("--version").stderr(Stdio::null()).output();
    output.is_ok_and(|output| major_version(&String::from_utf8_lossy(&output.stdout)).is_some_and(|major| major >= OLDEST))
}

/// 15 from `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`.
fn major_version(text: &str) -> Option<u32> {
    let version = text.split(' ').find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// A new folder that only the server's user (and root) may enter, and its lock.
fn create_folder(user: User) -> Result<(PathBuf, File), PostgresError> {
    let parents = [std::env::temp_dir(), "/tmp".into(), "/var/tmp".into()];
    // Plain characters only: the path stands in a list of the server's settings and in URLs.
    let plain = |path: &PathBuf| path.to_str().is_some_and(|p| p.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+".contains(c)));
    let usable =
        |path: &PathBuf| plain(path) && path.as_os_str().len() <= MAX_PARENT && user.may_enter(path) && user.may_write(path);
    // Links resolved: on macOS the temporary folder is behind one.
    for parent in parents.iter().filter_map(|path| fs::canonicalize(path).ok()).filter(usable) {
        sweep(&parent);
        if let Some(created) = create_in(&parent, user)? {
            return Ok(created);
        }
    }
    Err(PostgresError::NoFolder)
}

/// `None` where `parent` does not let us.
fn create_in(parent: &Path, user: User) -> Result<Option<(PathBuf, File)>, PostgresError> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    for _ in 0..MAX_NAMES {
        let folder = parent.join(format!("{FOLDER_PREFIX}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
        match DirBuilder::new().mode(0o700).create(&folder) {
            Ok(()) => {}
            // In use: a container that shares the folder has a process of our number.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            Err(_) => return Ok(None),
        }
        // Until it is locked a sweep may take it for an abandoned one; after that none can.
        if let Some(lock) = lock(&folder).filter(|_| folder.exists()) {
            user.give(&folder)?;
            return Ok(Some((folder, lock)));
        }
        let _ = fs::remove_dir(&folder);
    }
    Ok(None)
}

/// The lock on a folder, unless another process holds it or it is not ours to open.
fn lock(folder: &Path) -> Option<File> {
    let file = fs::symlink_metadata(folder).is_ok_and(|m| m.is_dir()).then(|| File::open(folder).ok())??;
    file.try_lock().is_ok().then_some(file)
}

/// Deletes the folders that no process holds any more. A server that should still run in one gives
/// up within a minute: it looks for its `postmaster.pid` that often.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(FOLDER_PREFIX)
            && let Some(_lock) = lock(&entry.path())
        {
            // Others may sweep too, and what cannot be deleted now is found again.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// How `child` ended; `None` where it has not after `timeout`.
fn wait(child: &mut Child, timeout: Duration) -> io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + timeout;
    loop {
        let status = child.try_wait()?;
        if status.is_some() || Instant::now() >= deadline {
            return Ok(status);
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

fn io_error(what: impl FnOnce() -> String) -> impl FnOnce(io::Error) -> PostgresError {
    |source| PostgresError::Io { what: what(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read_from_every_packager_s_wording() {
        for (text, major) in [
            ("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n", Some(15)),
            ("postgres (PostgreSQL) 18.4\n", Some(18)),
            ("postgres (PostgreSQL) 19beta1", Some(19)),
            ("postgres (PostgreSQL) 9.6.24", Some(9)),
            ("something else", None),
        ] {
            assert_eq!(major_version(text), major, "{text}");
        }
    }

    #[test]
    fn the_highest_version_is_preferred_by_number_not_by_text() {
        let parent = scratch("versions");
        for name in ["pgsql-9", "pgsql-18", "pgsql-16", "pgsql-old", "other-20"] {
            fs::create_dir(parent.join(name)).unwrap();
        }
        let found = by_version(&parent, "pgsql-");
        fs::remove_dir_all(&parent).unwrap();
        assert_eq!(found, ["pgsql-18", "pgsql-16", "pgsql-9"].map(|name| parent.join(name)));
    }

    #[test]
    fn a_sweep_takes_abandoned_folders_and_leaves_those_in_use_and_those_of_others() {
        let parent = scratch("sweep");
        let [abandoned, in_use, foreign] = ["paypoll-pg-1-0", "paypoll-pg-2-0", "somebody-else"].map(|name| parent.join(name));
        for folder in [&abandoned, &in_use, &foreign] {
            fs::create_dir(folder).unwrap();
            fs::write(folder.join("file"), "").unwrap();
        }
        let held = lock(&in_use).unwrap();
        sweep(&parent);
        let left = [&abandoned, &in_use, &foreign].map(|folder| folder.exists());
        drop(held);
        fs::remove_dir_all(&parent).unwrap();
        assert_eq!(left, [false, true, true]);
    }

    #[test]
    fn an_option_wins_over_ours() {
        let options = Options { durable: true, settings: vec![("max_connections".into(), "7".into())] };
        let arguments = arguments(Path::new("/f"), &options);
        assert_eq!(arguments.iter().rfind(|a| a.starts_with("max_connections")).unwrap(), "max_connections=7");
        assert!(!arguments.iter().any(|a| a.starts_with("fsync")));
    }

    fn scratch(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("paypoll-test-{name}-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        folder
    }
}
