//! The binary as it is typed: exit codes, and errors in one sentence that says what to do.

use crate::support;
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/config/simulator.toml");

/// Runs it with these variables and no others of its own.
fn paypoll(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_paypoll"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PAYPOLL__")) {
        command.env_remove(name);
    }
    command.env_remove("DATABASE_URL").envs(environment.iter().copied()).args(arguments);
    command.stdin(Stdio::null()).output().unwrap()
}

/// Its exit code and what it says on stderr.
fn refusal(arguments: &[&str], environment: &[(&str, &str)]) -> (i32, String) {
    let output = paypoll(arguments, environment);
    assert!(output.stdout.is_empty(), "errors go to stderr: {}", String::from_utf8_lossy(&output.stdout));
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

/// The configuration is refused by a sentence with all of `words`.
fn assert_misconfigured(arguments: &[&str], environment: &[(&str, &str)], words: &[&str]) {
    let (code, text) = refusal(arguments, environment);
    assert_eq!(code, 2, "{text}");
    assert!(words.iter().all(|word| text.contains(word)), "{words:?} are not in: {text}");
}

const ANY_DATABASE: (&str, &str) = ("DATABASE_URL", "postgres://nobody@127.0.0.1:1/nothing");

#[tokio::test(flavor = "multi_thread")]
async fn a_database_without_the_schema_is_answered_with_the_command_that_makes_it() {
    let url = support::empty_database().await;
    let environment = [("DATABASE_URL", url.as_str()), ("PAYPOLL__OPS__LISTEN", ""), ("PAYPOLL__LOG__FORMAT", "json")];
    let (code, text) = refusal(&["run", "--config", EXAMPLE], &environment);
    assert!(code == 1 && text.contains("paypoll migrate"), "{code}: {text}");
    let migrated = paypoll(&["migrate"], &environment);
    assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
    let again = paypoll(&["migrate"], &environment);
    assert!(again.status.success(), "migrating twice does no harm");
}

#[test]
fn a_database_that_is_not_there_is_waited_for_and_then_named() {
    let environment = [ANY_DATABASE, ("PAYPOLL__DATABASE__CONNECT_TIMEOUT", "300ms"), ("PAYPOLL__OPS__LISTEN", "")];
    let (code, text) = refusal(&["run", "--config", EXAMPLE], &environment);
    assert!(code == 1 && text.contains("could not be reached") && text.contains("refused"), "{code}: {text}");
}

/// Answers each connection as a server that refuses it.
fn refusing_database(code: &'static str, message: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("postgres://nobody@{}/nothing?sslmode=disable", listener.local_addr().unwrap());
    thread::spawn(move || {
        for connection in listener.incoming() {
            let mut connection = connection.unwrap();
            let mut length = [0; 4];
            connection.read_exact(&mut length).unwrap();
            connection.read_exact(&mut vec![0; u32::from_be_bytes(length) as usize - 4]).unwrap();
            let fields = format!("SFATAL\0VFATAL\0C{code}\0M{message}\0\0");
            let mut answer = vec![b'E'];
            answer.extend(u32::try_from(fields.len() + 4).unwrap().to_be_bytes());
            answer.extend(fields.as_bytes());
            connection.write_all(&answer).unwrap();
        }
    });
    url
}

#[test]
fn a_database_that_refuses_is_quoted_and_asked_again_only_where_that_may_help() {
    let run = |url: &str, patience| {
        let environment = [("DATABASE_URL", url), ("PAYPOLL__DATABASE__CONNECT_TIMEOUT", patience), ("PAYPOLL__OPS__LISTEN", "")];
        refusal(&["run", "--config", EXAMPLE], &environment)
    };
    // A minute would be noticed.
    let (code, text) = run(&refusing_database("08P01", "unsupported startup parameter: options"), "1h");
    assert!(code == 1 && text.starts_with("unsupported startup parameter: options (so the database answered"), "{code}: {text}");
    let (code, text) = run(&refusing_database("53300", "sorry, too many clients already"), "300ms");
    assert!(code == 1 && text.starts_with("sorry, too many clients already (so the database answered"), "{code}: {text}");
    assert_eq!(text.matches("too many clients").count(), 1, "{text}");
}

#[test]
fn without_a_database_or_a_provider_there_is_nothing_to_run() {
    assert_misconfigured(&["run", "--config", EXAMPLE], &[], &["database.url", "DATABASE_URL"]);
    let (code, text) = refusal(&["run"], &[ANY_DATABASE]);
    assert!(code != 0 && text.contains("no provider is enabled"), "{code}: {text}");
}

#[test]
fn unknown_keys_are_refused_by_name() {
    assert_misconfigured(&["run"], &[ANY_DATABASE, ("PAYPOLL__WORKER__LEASES", "15s")], &["worker.leases"]);
    assert_misconfigured(&["run", "--config", "/no/such/file.toml"], &[ANY_DATABASE], &["/no/such/file.toml"]);
}

#[test]
fn a_missing_secret_is_named_with_both_ways_to_give_it() {
    let environment = [ANY_DATABASE, ("PAYPOLL__PROVIDERS__KHALTI__ENABLED", "true")];
    assert_misconfigured(&["run"], &environment, &["providers.khalti.accounts", "token", "token_file"]);
}

#[test]
fn a_secrets_file_that_cannot_be_read_is_named() {
    let environment = [
        ANY_DATABASE,
        ("PAYPOLL__PROVIDERS__KHALTI__ENABLED", "true"),
        ("PAYPOLL__PROVIDERS__KHALTI__ACCOUNTS__DEFAULT__TOKEN_FILE", "/no/such/secret"),
    ];
    assert!(!Path::new("/no/such/secret").exists());
    assert_misconfigured(&["run"], &environment, &["providers.khalti.accounts.default.token_file", "/no/such/secret"]);
}

#[test]
fn rules_below_the_documented_floor_are_refused_with_the_floor() {
    let environment = [ANY_DATABASE, ("PAYPOLL__PROVIDERS__DUSUPAY__SCHEDULE", "{ first = \"1m\" }")];
    assert_misconfigured(&["run"], &environment, &["providers.dusupay.schedule.first", "2m"]);
}

#[test]
fn nobody_elses_rules_are_hurried() {
    let environment = [
        ANY_DATABASE,
        ("PAYPOLL__PROVIDERS__KHALTI__ENABLED", "true"),
        ("PAYPOLL__PROVIDERS__KHALTI__ACCOUNTS__DEFAULT__TOKEN", "canary"),
    ];
    assert_misconfigured(&["run", "--speed", "60"], &environment, &["--speed", "khalti.com"]);
    let (_, text) = refusal(&["run", "--speed", "60"], &environment);
    assert!(!text.contains("canary"), "{text}");
}

#[test]
fn help_is_no_error_and_a_word_that_is_no_command_is_one() {
    let help = paypoll(&["--help"], &[]);
    let text = String::from_utf8(help.stdout).unwrap();
    assert!(help.status.success());
    let listed: Vec<&str> =
        text.split("Commands:").nth(1).unwrap().lines().skip(1).map_while(|line| line.split_whitespace().next()).collect();
    assert_eq!(listed, [&COMMANDS[..], &["help"]].concat());
    assert_eq!(refusal(&["walk"], &[]).0, 2);
    assert_eq!(refusal(&[], &[]).0, 2);
}

#[test]
fn a_pattern_that_matches_no_account_is_refused_with_the_accounts_that_there_are() {
    assert_misconfigured(
        &["run", "--config", EXAMPLE, "--accounts", "khalti/*", "--accounts", "dusupay/keyna"],
        &[ANY_DATABASE],
        &["--accounts \"dusupay/keyna\"", "dusupay/default", "khalti/default"],
    );
}

/// All commands, in the order of the help.
const COMMANDS: [&str; 16] = [
    "run", "migrate", "config", "check", "plan", "status", "show", "list", "retry", "pause", "resume", "probe", "audit",
    "provider", "simulate", "demo",
];

#[test]
fn every_shell_completes_every_command_and_its_options() {
    for shell in ["bash", "zsh", "fish"] {
        let output = paypoll(&["completions", shell], &[]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{shell}");
        let options = ["accounts", "dry-run", "since", "watch", "config", "speed"];
        for word in COMMANDS.iter().chain(&options) {
            assert!(text.contains(word), "{word} is not in the script for {shell}");
        }
    }
    let (code, text) = refusal(&["completions", "tcsh"], &[]);
    assert!(code == 2 && text.contains("bash") && text.contains("zsh"), "{text}");
}

#[test]
fn paypoll_and_each_of_its_commands_has_a_manual_page() {
    let page = |arguments: &[&str]| {
        let output = paypoll(arguments, &[]);
        assert!(output.status.success() && output.stderr.is_empty(), "{arguments:?}");
        // The formatter's escapes for a hyphen.
        String::from_utf8(output.stdout).unwrap().replace("\\-", "-")
    };
    let whole = page(&["man"]);
    for command in COMMANDS {
        assert!(whole.contains(&format!("paypoll-{command}(1)")), "{command} is not in: {whole}");
        assert!(page(&["man", command]).contains(&format!("paypoll-{command}")), "{command}");
    }
    assert!(whole.contains("Exit codes: 0 fine") && whole.contains("DATABASE_URL"), "{whole}");
    assert!(page(&["man", "retry"]).contains("--dry-run"));
    let (code, text) = refusal(&["man", "walk"], &[]);
    assert!(code == 2 && text.contains("run, migrate, config, check"), "{text}");
}

#[test]
fn a_demo_that_is_too_fast_for_its_own_scripts_is_refused() {
    assert_misconfigured(&["demo", "--speed", "61"], &[], &["--speed", "60"]);
}

#[test]
fn a_demo_ends_by_itself_with_every_transaction_where_its_script_leads() {
    let output = paypoll(&["demo", "--transactions", "15"], &[]);
    let (text, errors) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success() && errors.is_empty(), "{text}{errors}");
    assert!(text.contains("surprises: 0") && text.contains(" 0 violations"), "{text}");
    assert!(text.contains("\n   1 s  dropayment "), "plain lines where nobody looks: {text}");
}

#[test]
fn a_demo_that_is_interrupted_leaves_nothing_behind() {
    let mut demo = Command::new(env!("CARGO_BIN_EXE_paypoll"));
    let mut demo = demo.arg("demo").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(demo.stdout.take().unwrap()).lines();
    let begun = lines.find(|line| line.as_ref().is_ok_and(|line| line.contains("polls/s")));
    begun.expect("a line before the end").unwrap();
    let ours = format!("paypoll-pg-{}-", demo.id());
    let folders = || {
        let found = |parent: &Path| std::fs::read_dir(parent).into_iter().flatten().flatten();
        let all = found(&std::env::temp_dir()).chain(found(Path::new("/tmp"))).chain(found(Path::new("/var/tmp")));
        all.filter(|entry| entry.file_name().to_string_lossy().starts_with(&ours)).count()
    };
    assert_ne!(folders(), 0);
    kill_process(Pid::from_child(&demo), Signal::INT).unwrap();
    let mut errors = String::new();
    demo.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    assert_eq!(folders(), 0);
    assert_eq!(demo.wait().unwrap().code(), Some(1), "{errors}");
    assert!(errors.contains("interrupted"), "{errors}");
}
