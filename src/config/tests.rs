use super::*;
use crate::domain::{Origin, Phase, Range, Until};
use std::path::Path;

const URL: (&str, &str) = ("DATABASE_URL", "postgres://daemon:pa55@db/payments");

/// DusuPay as a whole, in one variable.
const DUSUPAY: (&str, &str) = (
    "PAYPOLL__PROVIDERS__DUSUPAY",
    r#"{ enabled = true, base_url = "https://api.example.com/", accounts = { default = { public_key = "k3y-of-dusupay" } } }"#,
);

fn load(variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    load_files::<PathBuf>(&[], variables)
}

fn load_files<F: AsRef<Path>>(files: &[F], variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let files: Vec<PathBuf> = files.iter().map(|file| file.as_ref().to_owned()).collect();
    Config::load(&files, owned(variables), 1.0)
}

fn owned(variables: &[(&str, &str)]) -> impl Iterator<Item = (String, String)> {
    variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
}

/// The one mistake in these variables, beside a good DusuPay.
fn problem(variables: &[(&str, &str)]) -> String {
    let all: Vec<_> = [URL, DUSUPAY].iter().chain(variables).copied().collect();
    let error = load(&all).expect_err("a mistake");
    assert_eq!(error.problems().len(), 1, "{error}");
    error.to_string()
}

/// A file that is gone after the test.
struct Written(PathBuf);

impl AsRef<Path> for Written {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).expect("it was written by this test");
    }
}

fn file(name: &str, text: &str) -> Written {
    let path = std::env::temp_dir().join(format!("paypoll-config-{}-{name}", std::process::id()));
    std::fs::write(&path, text).expect("a writable temporary folder");
    Written(path)
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn the_defaults_alone_are_a_configuration_that_polls_nobody() {
    let config = load(&[]).expect("valid");
    assert!(config.providers.is_empty());
    assert_eq!((config.database.max_connections, config.database.connect_timeout), (8, seconds(30)));
    assert_eq!((config.log.format, config.log.filter.as_str()), (LogFormat::Json, "info"));
    assert_eq!((config.ops.listen, config.ops.max_overdue), ("127.0.0.1:9464".parse().ok(), seconds(60)));
    assert_eq!((config.worker.lease, config.worker.shutdown_grace), (seconds(15), seconds(20)));
    assert_eq!((config.worker.max_in_flight, config.worker.max_held), (512, 50_000));
    assert_eq!(config.journal.retention, seconds(30 * 86_400));
    let missing = config.database.url().expect_err("no address").to_string();
    assert!(missing.contains("database.url") && missing.contains("DATABASE_URL"), "{missing}");
}

#[test]
fn an_enabled_provider_comes_with_its_documented_rules() {
    let config = load(&[URL, DUSUPAY]).expect("valid");
    let [dusupay] = &config.providers[..] else { panic!("one provider, not {:?}", config.providers) };
    assert_eq!((dusupay.descriptor.name, dusupay.base_url.as_str()), ("dusupay", "https://api.example.com"));
    assert_eq!((dusupay.timeout, dusupay.max_in_flight), (seconds(10), 64));
    assert_eq!(dusupay.rate, Rate { per_second: 10.0, burst: 10 });
    assert_eq!(dusupay.circuit, Circuit { failures: 20, probe_after: seconds(30) });
    assert_eq!(&*dusupay.accounts[0].name, "default");
    let rules = &dusupay.rules;
    assert_eq!((rules.plan.first, rules.plan.margin), (Range::exactly(seconds(130)), seconds(0)));
    assert_eq!(rules.plan.phases, [Phase { every: Range::exactly(seconds(300)), until: Until::Open }]);
    assert_eq!(rules.plan.give_up_after, Some(seconds(259_200)));
    assert_eq!((rules.retry.wait(1, 0.0), rules.retry.wait(99, 0.0)), (seconds(5), seconds(300)));
    assert_eq!((rules.not_found.limit, rules.not_found.min_age), (5, seconds(600)));
    assert_eq!(rules.floors, dusupay.descriptor.floors);
}

#[test]
fn later_layers_win_key_by_key() {
    let low = file("low", "[worker]\nlease = \"20s\"\nmax_held = 7\n[providers.dusupay]\nrate_limit = { burst = 3 }\n");
    let high = file("high", "[worker]\nlease = \"30s\"\n[log]\nformat = \"text\"\n");
    let config = load_files(&[low, high], &[URL, DUSUPAY, ("PAYPOLL__WORKER__MAX_HELD", "9"), ("PAYPOLL__OPS__LISTEN", "")]);
    let config = config.expect("valid");
    assert_eq!((config.worker.lease, config.worker.max_held, config.log.format), (seconds(30), 9, LogFormat::Text));
    assert_eq!(config.providers[0].rate, Rate { per_second: 10.0, burst: 3 });
    assert_eq!(config.ops.listen, None);
}

#[test]
fn the_environment_sets_numbers_flags_tables_and_lists() {
    let config = load(&[
        URL,
        ("PAYPOLL__PROVIDERS__DUSUPAY__ENABLED", "true"),
        ("PAYPOLL__PROVIDERS__DUSUPAY__BASE_URL", "https://api.example.com"),
        ("PAYPOLL__PROVIDERS__DUSUPAY__ACCOUNTS__KENYA__PUBLIC_KEY", "k"),
        ("PAYPOLL__PROVIDERS__DUSUPAY__RATE_LIMIT__PER_SECOND", "2.5"),
        ("PAYPOLL__PROVIDERS__DUSUPAY__SCHEDULE", "{ first = \"3m\" }"),
        ("PAYPOLL__PROVIDERS__DUSUPAY__SCHEDULE__PHASES", "[{ every = \"6m\", count = 3 }]"),
    ]);
    let config = config.expect("valid");
    let dusupay = &config.providers[0];
    assert_eq!(&*dusupay.accounts[0].name, "kenya");
    assert_eq!(dusupay.rate, Rate { per_second: 2.5, burst: 10 });
    assert_eq!(dusupay.rules.plan.first, Range::exactly(seconds(180)));
    assert_eq!(dusupay.rules.plan.phases, [Phase { every: Range::exactly(seconds(360)), until: Until::Count(3) }]);
}

#[test]
fn a_variable_finds_the_spelling_of_the_layer_below() {
    let below = file(
        "below",
        "[providers.dusupay]\nenabled = true\nbase_url = \"https://a.example\"\n[providers.dusupay.accounts.Kenya]\npublic_key = \"a\"\n",
    );
    let config = load_files(&[below], &[("PAYPOLL__PROVIDERS__DUSUPAY__ACCOUNTS__KENYA__PUBLIC_KEY", "b")]).expect("valid");
    assert_eq!(config.providers[0].accounts.len(), 1);
    assert_eq!(&*config.providers[0].accounts[0].name, "Kenya");
}

#[test]
fn the_database_is_named_by_paypolls_own_variable_before_database_url() {
    let own = ("PAYPOLL__DATABASE__URL", "postgresql://own");
    let below = file("url", "[database]\nurl = \"postgres://file\"\n");
    let url = |config: Config| config.database.url().expect("set").expose_secret().to_owned();
    assert_eq!(url(load(&[URL, own]).expect("valid")), "postgresql://own");
    assert_eq!(url(load_files(std::slice::from_ref(&below), &[URL]).expect("valid")), URL.1);
    assert_eq!(url(load_files(&[below], &[("DATABASE_URL", "")]).expect("valid")), "postgres://file");
}

#[test]
fn a_secret_may_come_from_a_file() {
    let secret = file("secret", "postgres://from-a-file\r\n");
    let path = secret.0.to_str().expect("UTF-8");
    let config = load(&[("PAYPOLL__DATABASE__URL_FILE", path)]).expect("valid");
    assert_eq!(config.database.url().expect("set").expose_secret(), "postgres://from-a-file");
    // The later layer wins, whichever of the two ways it takes.
    let below = file("secret-below", &format!("[database]\nurl_file = {path:?}\n"));
    let config = load_files(&[below], &[URL]).expect("valid");
    assert_eq!(config.database.url().expect("set").expose_secret(), URL.1);
}

#[test]
fn a_secret_is_given_once_and_readable() {
    let both = load(&[("PAYPOLL__DATABASE__URL", "postgres://a"), ("PAYPOLL__DATABASE__URL_FILE", "/b")]).expect_err("both");
    assert_eq!(both.to_string(), "database.url: url_file is given too; keep one of the two");
    let text = load(&[("PAYPOLL__DATABASE__URL_FILE", "/nowhere/url")]).expect_err("unreadable").to_string();
    assert!(text.starts_with("database.url_file = /nowhere/url: the file cannot be read"), "{text}");
    let key = ("PAYPOLL__PROVIDERS__DUSUPAY__ACCOUNTS__SECOND__PUBLIC_KEY_FILE", "/nowhere/key");
    let text = problem(&[key]);
    assert!(text.starts_with("providers.dusupay.accounts.second.public_key_file = /nowhere/key: "), "{text}");
}

#[test]
fn an_unknown_key_is_refused_by_name_with_the_nearest_one() {
    for (variable, value, said) in [
        ("PAYPOLL__WORKER__LEASES", "1s", "worker.leases is not a known key; did you mean worker.lease?"),
        ("PAYPOLL__WORKERS__LEASE", "1s", "workers is not a known key; did you mean worker?"),
        ("PAYPOLL__PROVIDERS__DUSUPAI__TIMEOUT", "1s", "providers.dusupai is not a known key; did you mean providers.dusupay?"),
        (
            "PAYPOLL__PROVIDERS__DUSUPAY__RETRY__MULTIPLYER",
            "2",
            "providers.dusupay.retry.multiplyer is not a known key; did you mean providers.dusupay.retry.multiplier?",
        ),
        (
            "PAYPOLL__PROVIDERS__DUSUPAY__ACCOUNTS__DEFAULT__PUBLICKEY",
            "s3cret",
            "providers.dusupay.accounts.default.publickey is not a known key; did you mean providers.dusupay.accounts.default.public_key?",
        ),
        (
            "PAYPOLL__PROVIDERS__DUSUPAY__SCHEDULE__PHASES",
            "[{ every = \"5m\", until = \"1h\" }]",
            "providers.dusupay.schedule.phases[0].until is not a known key; known here: count, every, for",
        ),
        ("PAYPOLL__JOURNAL__X", "1", "journal.x is not a known key; known here: retention"),
    ] {
        assert_eq!(problem(&[(variable, value)]), said);
    }
}

#[test]
fn a_wrong_value_is_named_with_its_key_and_its_mend() {
    for (toml, said) in [
        ("worker.lease = 15", "worker.lease = 15: a duration is text with a unit"),
        ("worker.lease = \"15\"", "worker.lease = \"15\": a duration is text with a unit"),
        ("worker.lease = \"-15s\"", "worker.lease = \"-15s\": a duration is text with a unit"),
        ("worker.lease = \"40000d\"", "worker.lease = \"40000d\": a duration is at most 100 years"),
        ("worker = 3", "worker = 3: must be a table"),
        ("worker.max_in_flight = 0", "worker.max_in_flight = 0: must be a number from 1"),
        ("worker.max_in_flight = \"9\"", "worker.max_in_flight = \"9\": must be a number from 1"),
        ("worker.max_in_flight = 1.5", "worker.max_in_flight = 1.5: must be a number from 1"),
        ("database.max_connections = -1", "database.max_connections = -1: must be a number from 1"),
        ("database.url = \"mysql://pa55\"", "database.url: must begin with postgres://"),
        ("database.url = 55", "database.url: must be text"),
        ("log.format = \"xml\"", "log.format = \"xml\": must be \"json\" or \"text\""),
        ("log.filter = \"paypoll=loud\"", "log.filter = \"paypoll=loud\": no filter"),
        ("ops.listen = \"9464\"", "ops.listen = \"9464\": must be an address and a port"),
        ("journal.retention = \"1h\"", "journal.retention = \"1h\": must be at least \"24h\""),
        ("providers.dusupay.enabled = \"yes\"", "providers.dusupay.enabled = \"yes\": must be true or false"),
        ("providers.dusupay.rate_limit.per_second = 0", "providers.dusupay.rate_limit.per_second = 0: must be a number from 0.001"),
        ("providers.dusupay.rate_limit.per_second = inf", "providers.dusupay.rate_limit.per_second = inf: must be a number"),
        ("providers.dusupay.rate_limit.burst = 0", "providers.dusupay.rate_limit.burst = 0: must be a number from 1"),
        ("providers.dusupay.retry.multiplier = 0.5", "providers.dusupay.retry.multiplier = 0.5: must be a number from 1"),
        ("providers.dusupay.retry.max = \"1s\"", "providers.dusupay.retry.max = \"1s\": must be at least \"5s\""),
        ("providers.dusupay.circuit.failures = 0", "providers.dusupay.circuit.failures = 0: must be a number from 1"),
        ("providers.dusupay.not_found.limit = 0", "providers.dusupay.not_found.limit = 0: must be a number from 1"),
        ("providers.dusupay.timeout = \"0s\"", "providers.dusupay.timeout = \"0s\": must be at least \"1ms\""),
    ] {
        let error = load_files(&[file("wrong", toml)], &[]).expect_err(toml).to_string();
        assert!(error.starts_with(said), "{toml}\n{error}");
        assert!(!error.contains("pa55") && !error.contains("url = 55"), "{error}");
    }
}

#[test]
fn a_plan_that_makes_no_sense_or_breaks_the_documented_floors_is_refused() {
    for (schedule, said) in [
        ("first = \"1m\"", "schedule.first = \"1m\": the provider's documented floor is 2m"),
        ("first = \"119s..5m\"", "schedule.first = \"119s..5m\": the provider's documented floor is 2m"),
        ("phases = [{ every = \"4m\" }]", "schedule.phases[0].every = \"4m\": the provider's documented floor is 5m"),
        ("by_state = { PENDING = [{ every = \"1m\" }] }", "schedule.by_state.PENDING[0].every = \"1m\": the provider's"),
        ("by_state = { PENDING = [] }", "schedule.by_state.PENDING: must have at least one phase"),
        ("phases = [{ every = \"9m..6m\" }]", "schedule.phases[0].every = \"9m..6m\": the shorter wait"),
        ("phases = [{ every = \"5m\", count = 0 }]", "schedule.phases[0].count = 0: must be a number from 1"),
        ("phases = [{ every = \"5m\", for = \"0s\" }]", "schedule.phases[0].for = \"0s\": must be at least \"1ms\""),
        ("phases = [{ every = \"5m\", for = \"1h\", count = 2 }]", "schedule.phases[0].count: `for` is given too"),
        ("phases = [{ every = \"5m\" }, { every = \"6m\" }]", "schedule.phases[0]: only the last phase may be open"),
        ("phases = [{ for = \"5m\" }]", "schedule.phases[0].every: is missing"),
        ("phases = [\"5m\"]", "schedule.phases[0] = \"5m\": must be a table"),
        ("phases = \"5m\"", "schedule.phases = \"5m\": must be a list"),
        ("phases = [], give_up_after = \"never\"", "schedule.phases: must have at least one phase"),
        ("give_up_after = \"2m\"", "schedule.give_up_after = \"2m\": must be longer than the wait for the first poll, 2m10s"),
        (
            "first = \"2m\", give_up_after = \"2m\"",
            "schedule.give_up_after = \"2m\": must be longer than the wait for the first poll, 2m1s",
        ),
        ("give_up_after = 5", "schedule.give_up_after = 5: a duration is"),
        ("from = \"birth\"", "schedule.from = \"birth\": must be \"initiation\", \"first_poll\" or \"action\""),
    ] {
        let text = format!("[providers.dusupay]\nschedule = {{ {schedule} }}");
        let error = load_files(&[file("plan", &text)], &[]).expect_err(schedule).to_string();
        assert!(error.starts_with(&format!("providers.dusupay.{said}")), "{schedule}\n{error}");
    }
}

#[test]
fn the_documented_window_cannot_be_stretched() {
    let floors = crate::domain::Floors { every: seconds(3), window: Some(seconds(180)), ..Default::default() };
    for (schedule, allowed) in [
        (r#"phases = [{ every = "3s..5s", for = "3m" }]"#, true),
        (r#"phases = [{ every = "3s", for = "1m" }, { every = "5s", for = "2m" }]"#, true),
        (r#"phases = [{ every = "5s" }], give_up_after = "3m""#, true),
        (r#"phases = [{ every = "3s", for = "4m" }]"#, false),
        (r#"phases = [{ every = "3s", for = "2m" }, { every = "5s", for = "61s" }]"#, false),
        (r#"phases = [{ every = "3s" }]"#, false),
        (r#"phases = [{ every = "3s", count = 9 }]"#, false),
        (r#"phases = [{ every = "5s" }], give_up_after = "4m""#, false),
        (r#"from = "action", phases = [{ every = "3s", for = "3m" }]"#, false),
        (r#"phases = [{ every = "3s", for = "3m" }], by_state = { X = [{ every = "3s", for = "1m" }] }"#, true),
        (r#"phases = [{ every = "3s", for = "3m" }], by_state = { X = [{ every = "3s", for = "4m" }] }"#, false),
        (r#"phases = [{ every = "3s", for = "3m" }], by_state = { X = [{ every = "3s" }] }"#, false),
    ] {
        let problems = Problems::default();
        let text = format!("schedule = {{ first = \"3s..5s\", {schedule} }}");
        let (tree, _) = layers::merged(&text, &[], owned(&[])).expect("TOML");
        schedule::read(Section::new(String::new(), tree, &problems).section("schedule"), &floors);
        assert_eq!(problems.into_list().is_empty(), allowed, "{schedule}");
    }
}

#[test]
fn a_whole_plan_is_read() {
    let text = r#"[providers.khalti.schedule]
first = "20s..25s"
from = "action"
phases = [{ every = "3s", for = "30s" }, { every = "1m", count = 4 }, { every = "1h..2h" }]
by_state = { Processing = [{ every = "1d" }] }
give_up_after = "365d"
"#;
    let plan = plan("khalti", std::slice::from_ref(&file("whole", text).0), owned(&[]), 1.0).expect("valid").expect("known");
    assert_eq!((plan.first, plan.from), (Range { min: seconds(20), max: seconds(25) }, Origin::Action));
    let until: Vec<Until> = plan.phases.iter().map(|phase| phase.until).collect();
    assert_eq!(until, [Until::For(seconds(30)), Until::Count(4), Until::Open]);
    assert_eq!(plan.by_state["Processing"][0].every, Range::exactly(seconds(86_400)));
    assert_eq!(plan.give_up_after, Some(seconds(31_536_000)));
}

#[test]
fn a_plan_needs_no_account_and_unknown_providers_have_none() {
    let enabled = [("PAYPOLL__PROVIDERS__DUSUPAY__ENABLED", "true")];
    assert!(plan("dusupay", &[], owned(&enabled), 1.0).expect("valid").is_some());
    assert_eq!(plan("stripe", &[], owned(&[]), 1.0), Ok(None));
    assert_eq!(default_plan("dusupay").map(|plan| plan.first.min), Some(seconds(130)));
}

#[test]
fn what_an_enabled_provider_lacks_is_named() {
    let enabled = ("PAYPOLL__PROVIDERS__DUSUPAY__ENABLED", "true");
    let address = ("PAYPOLL__PROVIDERS__DUSUPAY__BASE_URL", "https://a.example");
    let say = |variables: &[(&str, &str)]| load(variables).expect_err("a mistake").to_string();
    assert!(say(&[enabled]).starts_with("providers.dusupay.base_url: is missing; set it"), "{}", say(&[enabled]));
    let text = say(&[enabled, address]);
    assert!(text.contains("set providers.dusupay.accounts.default.public_key (or public_key_file)"), "{text}");
    let empty = ("PAYPOLL__PROVIDERS__DUSUPAY__ACCOUNTS__DEFAULT__PUBLIC_KEY", "");
    let text = say(&[enabled, address, empty]);
    assert_eq!(text, "providers.dusupay.accounts.default.public_key is missing; set it, or public_key_file");
    let broken = ("PAYPOLL__PROVIDERS__DUSUPAY__ACCOUNTS__DEFAULT__PUBLIC_KEY", "a b s3cret");
    let text = say(&[enabled, address, broken]);
    assert!(text.starts_with("providers.dusupay.accounts.default.public_key has") && !text.contains("s3cret"), "{text}");
}

#[test]
fn an_address_carries_no_credentials_and_meets_no_public_host_unencrypted() {
    let address = |url| load(&[DUSUPAY, ("PAYPOLL__PROVIDERS__DUSUPAY__BASE_URL", url)]);
    for good in [
        "https://a.example/v1/",
        "http://127.0.0.1:9500",
        "http://[::1]:1",
        "http://localhost",
        "http://10.0.0.7",
        "http://simulator:9500",
    ] {
        assert!(address(good).is_ok(), "{good}");
    }
    assert_eq!(address("https://a.example/v1//").expect("valid").providers[0].base_url, "https://a.example/v1");
    for bad in [
        "a.example",
        "ftp://a.example",
        "https://user@a.example",
        "https://a.example?x=1",
        "https://a.example#x",
        "http://a.example",
        "http://8.8.8.8",
        "http://127.0.0.1.a.example",
    ] {
        let text = address(bad).expect_err(bad).to_string();
        assert!(text.starts_with("providers.dusupay.base_url = "), "{bad}: {text}");
    }
}

#[test]
fn the_lease_outlives_every_enabled_providers_timeout() {
    let text = problem(&[("PAYPOLL__PROVIDERS__DUSUPAY__TIMEOUT", "13s")]);
    assert_eq!(text, "worker.lease = \"15s\": must be longer than providers.dusupay.timeout plus 2 s; write more than \"15s\"");
    assert!(load(&[DUSUPAY, ("PAYPOLL__PROVIDERS__DUSUPAY__TIMEOUT", "12999ms")]).is_ok());
    assert!(load(&[("PAYPOLL__PROVIDERS__DUSUPAY__TIMEOUT", "60s")]).is_ok(), "nobody asks a disabled provider");
}

#[test]
fn speed_divides_the_rules_and_nothing_else_and_only_on_this_machine() {
    let local = [DUSUPAY, ("PAYPOLL__PROVIDERS__DUSUPAY__BASE_URL", "http://127.0.0.1:9500")];
    let config = Config::load(&[], owned(&local), 60.0).expect("valid");
    let dusupay = &config.providers[0];
    let rules = &dusupay.rules;
    assert_eq!((rules.plan.first.min, rules.plan.give_up_after), (seconds(130).div_f64(60.0), Some(seconds(4_320))));
    assert_eq!((rules.floors.first, rules.floors.every), (seconds(2), seconds(5)));
    assert_eq!(
        (rules.retry.wait(99, 0.0), rules.not_found.min_age, dusupay.circuit.probe_after),
        (seconds(5), seconds(10), Duration::from_millis(500))
    );
    assert_eq!((dusupay.timeout, config.worker.lease, dusupay.rate.per_second), (seconds(10), seconds(15), 10.0));

    let refused = Config::load(&[], owned(&[DUSUPAY]), 60.0).expect_err("a public host").to_string();
    assert!(
        refused.starts_with("--speed = 60: refused because providers.dusupay.base_url = \"https://api.example.com/\""),
        "{refused}"
    );
    for speed in [0.0, 0.5, -1.0, f64::NAN, f64::INFINITY, 10_001.0] {
        assert!(Config::load(&[], owned(&local), speed).is_err(), "{speed}");
        assert!(plan("dusupay", &[], owned(&local), speed).is_err(), "{speed}");
    }
}

#[test]
fn all_mistakes_are_told_at_once() {
    let error =
        load(&[("PAYPOLL__WORKER__LEASE", "x"), ("PAYPOLL__LOG__FORMAT", "x"), ("PAYPOLL__LOG__X", "x")]).expect_err("three");
    assert_eq!(error.problems().len(), 3, "{error}");
    assert_eq!(error.to_string().lines().count(), 3);
}

#[test]
fn a_file_that_cannot_be_used_is_named_without_quoting_it() {
    let missing = load_files(&["/nowhere/a.toml"], &[]).expect_err("missing").to_string();
    assert!(missing.starts_with("--config /nowhere/a.toml: the file cannot be read"), "{missing}");
    let broken = file("broken", "[database]\nurl = \"postgres://s3cret\n");
    let text = load_files(std::slice::from_ref(&broken), &[]).expect_err("broken").to_string();
    assert!(text.starts_with(&format!("--config {}, line 2: no valid TOML", broken.0.display())), "{text}");
    assert!(!text.contains("s3cret") && text.lines().count() == 1, "{text}");
}

#[test]
fn a_variable_in_the_wrong_place_is_named() {
    for (variable, value, said) in [
        ("PAYPOLL__PROVIDERS__KHALTI__SCHEDULE", "5m", "a table or a list is given as TOML"),
        ("PAYPOLL____LEASE", "5m", "two underscores stand between the levels"),
    ] {
        let text = load(&[(variable, value)]).expect_err(variable).to_string();
        assert!(text.starts_with(&format!("{variable}: {said}")), "{text}");
    }
    assert!(load(&[("PAYPOLL__WORKER__LEASE", "20s"), ("PAYPOLL__WORKER__LEASE__X", "1")]).is_err());
    assert!(load(&[("PAYPOLL_BIN", "x"), ("HOME", "/")]).is_ok(), "other variables are none of ours");
}

#[test]
fn no_secret_is_ever_shown() {
    let config = load(&[URL, DUSUPAY]).expect("valid");
    let shown = format!("{config:?}");
    assert!(!shown.contains("pa55") && !shown.contains("k3y-of-dusupay"), "{shown}");
    assert!(shown.contains("dusupay"));
}

fn shipped(name: &str) -> PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(name)
}

#[test]
fn every_shipped_file_is_a_configuration() {
    let folder = std::fs::read_dir(shipped("")).expect("the folder is there");
    let mut names: Vec<String> = folder.map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    assert_eq!(names, ["default.toml", "example.toml", "providers", "simulator.toml"]);
    load_files(&[shipped("default.toml")], &[]).expect("valid");
    let simulator = Config::load(&[shipped("simulator.toml")], owned(&[]), 60.0).expect("valid");
    assert_eq!(simulator.providers.len(), providers::REGISTRY.len());
}

#[test]
fn the_example_lacks_nothing_but_the_secrets_themselves() {
    let error = load_files(&[shipped("example.toml")], &[]).expect_err("no secret is shipped");
    for problem in error.problems() {
        assert!(problem.contains("_file = /run/secrets/") && problem.contains(": the file cannot be read"), "{problem}");
    }
}

#[test]
fn the_documented_defaults_have_every_provider_with_all_common_keys() {
    let defaults: toml::Table = toml::from_str(DEFAULTS).expect("TOML");
    let common = ["enabled", "timeout", "max_in_flight", "rate_limit", "schedule", "retry", "circuit", "not_found"];
    for descriptor in &providers::REGISTRY {
        let section = defaults["providers"][descriptor.name].as_table().expect("a table");
        for key in common.iter().chain(descriptor.option_keys) {
            assert!(section.contains_key(*key), "{}.{key}", descriptor.name);
        }
        for key in descriptor.account_keys {
            assert!(DEFAULTS.contains(&format!("# {key} = ")) || DEFAULTS.contains(&format!("# {key}_file = ")), "{key}");
        }
        assert_eq!(section["enabled"].as_bool(), Some(false));
    }
}

#[test]
fn patterns_choose_the_accounts_that_are_served() {
    let settings = [
        ("DUSUPAY__ENABLED", "true"),
        ("DUSUPAY__BASE_URL", "https://dusupay.example"),
        ("DUSUPAY__ACCOUNTS__KENYA__PUBLIC_KEY", "k"),
        ("DUSUPAY__ACCOUNTS__UGANDA__PUBLIC_KEY", "k"),
        ("KHALTI__ENABLED", "true"),
        ("KHALTI__ACCOUNTS__DEFAULT__TOKEN", "t"),
    ];
    let config = || {
        let environment = settings.map(|(key, value)| (format!("PAYPOLL__PROVIDERS__{key}"), value.to_owned()));
        Config::load(&[], environment.into_iter(), 1.0).expect("valid")
    };
    let serving = |patterns: &[&str]| config().serving(&patterns.iter().map(|pattern| (*pattern).to_owned()).collect::<Vec<_>>());
    let names = |config: Config| -> Vec<String> {
        let accounts =
            config.providers.iter().flat_map(|provider| provider.accounts.iter().map(move |account| (provider, account)));
        accounts.map(|(provider, account)| format!("{}/{}", provider.descriptor.name, account.name)).collect()
    };
    let served = |patterns: &[&str]| names(serving(patterns).expect("they match"));
    assert_eq!(served(&[]), ["dusupay/kenya", "dusupay/uganda", "khalti/default"]);
    assert_eq!(served(&["*"]), served(&[]));
    assert_eq!(served(&["dusupay/*"]), ["dusupay/kenya", "dusupay/uganda"]);
    assert_eq!(served(&["*/*a"]), ["dusupay/kenya", "dusupay/uganda"]);
    assert_eq!(served(&["*/de*lt", "*u*/u*a"]), ["dusupay/uganda", "khalti/default"]);
    let left = serving(&["khalti/default"]).expect("it matches").left;
    assert_eq!(left, [("dusupay", "kenya".into()), ("dusupay", "uganda".into())]);
    let error = serving(&["khalti/*", "khalti", "dapi/*"]).expect_err("two match nothing").to_string();
    assert_eq!(error.lines().count(), 2, "{error}");
    assert!(
        error.starts_with("--accounts \"khalti\" matches no account")
            && error.contains("dusupay/kenya, dusupay/uganda, khalti/default"),
        "{error}"
    );
}

/// DusuPay without an account.
const DUSUPAY_ON: (&str, &str) = ("PAYPOLL__PROVIDERS__DUSUPAY", r#"{ enabled = true, base_url = "https://api.example.com/" }"#);
const SECRET: &str = "live_68791341fdd94846a146f0457ff7b455";

#[test]
fn an_account_may_be_given_as_one_table_and_no_mistake_quotes_what_may_be_a_secret() {
    let table = format!("{{ public_key = \"{SECRET}\" }}");
    let config = load(&[URL, DUSUPAY_ON, ("PAYPOLL__PROVIDERS__DUSUPAY__ACCOUNTS__DEFAULT", &table)]).expect("valid");
    assert_eq!(&*config.providers[0].accounts[0].name, "default");
    let broken = format!("{{ public_key = \"{SECRET}\"");
    let in_place_of_a_key = format!("PAYPOLL__PROVIDERS__DUSUPAY__ACCOUNTS__DEFAULT__{}", SECRET.to_uppercase());
    for (name, value) in [
        ("PAYPOLL__PROVIDERS__DUSUPAY__ACCOUNTS__DEFAULT", &*broken),
        ("PAYPOLL__PROVIDERS__DUSUPAY__ACCOUNTS__PUBLIC_KEY", SECRET),
        ("PAYPOLL__PROVIDERS__DUSUPAY__ACCOUNTS", SECRET),
        ("PAYPOLL__PROVIDERS__DUSUPAY__ACCOUNTS__DEFAULT__PUBLIC_KEY_FILE", SECRET),
        (&in_place_of_a_key, "x"),
    ] {
        let error = load(&[URL, DUSUPAY_ON, (name, value)]).expect_err(name).to_string();
        assert!(!error.to_lowercase().contains("68791341"), "{name}: {error}");
    }
    let file = file("secret-one-level-up", &format!("[providers.dusupay.accounts]\npublic_key = \"{SECRET}\"\n"));
    let error = load_files(&[file], &[URL, DUSUPAY_ON]).expect_err("no account").to_string();
    assert!(error.contains("providers.dusupay.accounts.public_key: must be a table") && !error.contains("68791341"), "{error}");
}

#[test]
fn a_secret_file_is_one_line_or_pem_and_what_is_wrong_with_it_is_told_without_quoting_it() {
    let read = |name: &str, content: &str| {
        let file = file(name, content);
        let path = file.as_ref().to_str().expect("Unicode").to_owned();
        let key = "PAYPOLL__PROVIDERS__DUSUPAY__ACCOUNTS__DEFAULT__PUBLIC_KEY_FILE";
        load(&[URL, DUSUPAY_ON, (key, &path)]).map(drop).map_err(|error| error.to_string())
    };
    for (name, content) in
        [("ends", "a-key\n"), ("dos", "a-key\r\n"), ("plain", "a-key"), ("pem", "-----BEGIN KEY-----\nYQ==\n-----END KEY-----\n")]
    {
        let read = read(name, content);
        assert!(read.as_ref().err().is_none_or(|error| !error.contains("the file")), "{name}: {read:?}");
    }
    for (name, content, words) in [
        ("bom", "\u{feff}a-key\n", "byte-order mark"),
        ("lines", "a-key\nanother\n", "more than one line"),
        ("trailing", "a-key \n", "blanks before or after"),
        ("leading", "\ta-key\n", "blanks before or after"),
    ] {
        let error = read(name, content).expect_err(name);
        assert!(error.contains("public_key_file = /") && error.contains(words) && !error.contains("a-key"), "{name}: {error}");
    }
}

#[test]
fn a_file_with_secrets_that_everybody_may_read_is_warned_of() {
    use std::os::unix::fs::PermissionsExt as _;
    let warned = |name: &str, text: &str, mode: u32| {
        let file = file(name, text);
        std::fs::set_permissions(file.as_ref(), std::fs::Permissions::from_mode(mode)).expect("it is ours");
        crate::config::warnings(&[file.as_ref().to_owned()])
    };
    let secret = format!("[providers.dusupay.accounts.default]\npublic_key = \"{SECRET}\"\n");
    let warning = warned("open", &secret, 0o644);
    assert!(warning.len() == 1 && warning[0].contains("chmod o-r") && !warning[0].contains(SECRET), "{warning:?}");
    assert_eq!(warned("closed", &secret, 0o640), [""; 0]);
    assert_eq!(warned("url", "[database]\nurl = \"postgres://u:p@h/d\"\n", 0o644).len(), 1);
    for nothing in [
        "[database]\nurl = \"postgres://u@h/d\"\n",
        "[providers.dusupay.accounts.default]\npublic_key_file = \"/run/secrets/key\"\n",
        "[providers.ayoconnect.accounts.default]\nmerchant_id = \"MERCH1\"\n",
    ] {
        assert_eq!(warned("nothing", nothing, 0o644), [""; 0], "{nothing}");
    }
}
