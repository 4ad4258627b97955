//! The daemon as users start it: a process with an environment, a log and an end.

use crate::support::eventually;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

/// Settings as environment variables, without their prefix.
#[derive(Clone, Default)]
pub(crate) struct Settings(BTreeMap<String, String>);

impl Settings {
    /// No ops port, a short lease, and this database.
    pub(crate) fn new(url: &str) -> Self {
        let mut settings = Self::default();
        settings.set("DATABASE__URL", url).set("OPS__LISTEN", "").set("WORKER__LEASE", "4s");
        settings
    }

    pub(crate) fn set(&mut self, key: &str, value: &str) -> &mut Self {
        self.0.insert(format!("PAYPOLL__{key}"), value.to_owned());
        self
    }

    /// The binary with these settings and no others.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_paypoll"));
        command.env_clear().envs(&self.0).args(arguments).stdin(Stdio::null());
        command
    }

    /// A daemon whose log is read.
    pub(crate) fn run(&self, arguments: &[&str]) -> Process {
        Self::start(self.command(&[&["run"], arguments].concat()))
    }

    /// The same, started by another program, which is given its path and arguments.
    pub(crate) fn run_through(&self, program: &[&str]) -> Process {
        let mut command = Command::new(program[0]);
        command.env_clear().envs(&self.0).env("PATH", "/usr/bin:/bin").args(&program[1..]);
        command.args([env!("CARGO_BIN_EXE_paypoll"), "run"]).stdin(Stdio::null());
        Self::start(command)
    }

    fn start(mut command: Command) -> Process {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (lines, written) = (BufReader::new(child.stdout.take().unwrap()).lines(), log.clone());
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                written.lock().unwrap().push(serde_json::from_str(&line).unwrap());
            }
        });
        let mut errors = child.stderr.take().unwrap();
        let stderr = thread::spawn(move || {
            let mut text = String::new();
            let _ = errors.read_to_string(&mut text);
            text
        });
        Process { child, log, stderr: Some(stderr) }
    }
}

/// A daemon and its log.
pub(crate) struct Process {
    pub(crate) child: Child,
    log: Arc<Mutex<Vec<Value>>>,
    stderr: Option<thread::JoinHandle<String>>,
}

impl Process {
    /// The lines of an event so far.
    pub(crate) fn told(&self, event: &str) -> Vec<Value> {
        self.log.lock().unwrap().iter().filter(|line| line["event"] == event).cloned().collect()
    }

    /// All lines so far.
    pub(crate) fn lines(&self) -> Vec<Value> {
        self.log.lock().unwrap().clone()
    }

    /// Waits for the first line of an event.
    pub(crate) async fn tells(&self, event: &str) -> Value {
        eventually(event, || async { self.told(event).into_iter().next() }).await
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// How it ended, and what it said on standard error.
    pub(crate) async fn ends(&mut self) -> (ExitStatus, String) {
        let status = eventually("the daemon ends", || std::future::ready(self.child.try_wait().unwrap())).await;
        (status, self.stderr.take().map(|stderr| stderr.join().unwrap()).unwrap_or_default())
    }

    /// Ends it as a service manager does.
    pub(crate) async fn terminate(&mut self) -> (ExitStatus, String) {
        self.signal(Signal::TERM);
        self.ends().await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
