//! Providers that stand in a file: what is refused, how that is reported, and what their answers
//! mean.

use chrono::DateTime;
use paypoll::config::{Config, read_declaration};
use paypoll::domain::{Outcome, Reported};
use paypoll::providers::declared::{Declaration, Inspection};
use paypoll::providers::{self, Ask, Provider, Settings};
use paypoll::wire::{REDACTED, Redaction, Response};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

const ACME: &str = include_str!("fixtures/declared/acme.toml");

fn inspect(text: &str) -> Result<Inspection, Vec<String>> {
    Declaration::inspect("acme.toml", text.as_bytes())
}

/// Acme's file with one text in it replaced, everywhere.
fn with(old: &str, new: &str) -> String {
    assert!(ACME.contains(old), "{old:?} is not in the file");
    ACME.replace(old, new)
}

/// Everything that is wrong with a file.
fn problems(text: &str) -> String {
    match inspect(text).and_then(Inspection::accept) {
        Ok(_) => "nothing".into(),
        Err(problems) => problems.join("\n"),
    }
}

#[test]
fn a_file_that_is_in_order_is_taken_and_its_mutations_end_nothing() {
    let inspection = inspect(ACME).expect("no mistake");
    assert!(inspection.is_fine(), "{:?}", inspection.tried);
    let mutations: Vec<_> = inspection.tried.iter().flat_map(|tried| &tried.mutations).collect();
    assert!(mutations.len() > 70 && mutations.iter().all(|mutated| mutated.ends.is_none()), "{}", mutations.len());
    assert_eq!(inspection.hints, [""; 0]);
}

#[test]
fn what_is_wrong_with_a_file_is_told_with_file_line_key_and_mend() {
    let mut wrong = Vec::new();
    for (old, new, said) in [
        // Keys and types.
        ("title =", "tittle =", "acme.toml, line 4: tittle: is not a known key; known here:"),
        ("title =", "tittle =", "acme.toml, line 1: title: is missing; write the provider's name for people"),
        ("exclusive =", "bulk =", "line 6: bulk: is not a known key"),
        ("title = \"Acme Pay: payment status\"", "title = 7", "line 4: title: is integer; must be text in quotes"),
        ("believe = [200]", "believe = \"all\"", "answer.believe: is string; must be a number"),
        ("expand = true", "at = 2026-11-27", "request.json.at: is datetime"),
        ("format = 1", "format = 2", "line 2: format: 2 is not known to this paypoll; it reads format = 1"),
        ("form = \"word\" }\napi_key", "form = \"fancy\" }\napi_key", "account.merchant.form: \"fancy\" is no form"),
        ("name = \"acme\"", "name = \"khalti\"", "line 3: name: \"khalti\" is the name of a compiled provider"),
        ("name = \"acme\"", "name = \"Acme\"", "line 3: name: \"Acme\" is no name"),
        ("https://api.acme", "http://api.acme", "base_url: \"http://api.acme.example/v2\" would send credentials unencrypted"),
        // Placeholders and values.
        (
            "x-key = \"{account.api_key}\"",
            "x-key = \"{account.apikey}\"",
            "{account.apikey} is not declared; [account] has merchant, api_key",
        ),
        ("x-stamp = \"{stamp}\"", "x-stamp = \"{time}\"", "{time} is not declared; [values] has stamp, signature"),
        ("stamp = { now = \"seconds\" }", "stamp = { text = \"{signature}\" }", "values.stamp: is made of itself"),
        ("stamp = { now = \"seconds\" }", "stamp = { text = \"{stamp}\" }", "values.stamp: is made of itself"),
        ("now = \"seconds\"", "later = \"seconds\"", "values.stamp: has not exactly one function; write one of base64"),
        ("payments/{reference}\"", "payments/{signature}\"", "{request.path} cannot be part of the path"),
        ("tries = 3", "sum = \"{signature}\"", "{request.body} cannot be part of the body"),
        ("x-stamp = \"{stamp}\"", "x-stamp = \"{token}\"", "{token} is used and there is no [token]"),
        (
            "x-key = \"{account.api_key}\", x-stamp = \"{stamp}\", x-signature = \"{signature}\", ",
            "",
            "account.api_key: is declared and never used",
        ),
        // Secrets.
        ("{params.wallet}\" }", "{params.pin}\" }", "{params.pin} is a secret in a URL"),
        ("{params.wallet}\" }", "{signature}\" }", "{signature} is a secret in a URL"),
        (
            "/merchants/{account.merchant}",
            "/merchants/{account.api_key}",
            "line 31: request.path: {account.api_key} is a secret in a URL",
        ),
        (
            "is = \"{account.merchant}\"",
            "is = \"{account.api_key}\"",
            "{account.api_key} is a secret and is compared with an answer",
        ),
        ("is = true", "is = \"{account.api_key}\"", "compares with a constant, not with a placeholder"),
        ("\"/payment/amount\", \"/message\"]", "\"/payment/{account.api_key}\"]", "only {reference} may stand in a pointer"),
        // Identity.
        (
            "identity = [{ at = \"/payment/reference\", is = \"{reference}\" }, ",
            "identity = [",
            "compares nothing of the row, so another transaction's answer would be believed",
        ),
        ("is = \"{reference}\"", "is = \"order/1\"", "compares nothing of the row"),
        ("identity =", "#identity =", "answer.identity: is missing; write what in an answer is our own identifier"),
        ("is = \"{account.merchant}\" }]", "is = \"{params.pin}\" }]", "{params.pin} is a secret and is compared"),
        ("is = \"{account.merchant}\" }]", "is = \"{stamp}\" }]", "{stamp} is no identifier"),
        // Words and errors.
        ("means = \"failed\"", "means = \"dead\"", "\"dead\" is no meaning; write one of pending, action_required, succeeded"),
        (
            "\"open+*\" = { means = \"pending\" }",
            "\"open+*\" = { means = \"failed\" }",
            "has a star, which stands for any text, and may only mean pending",
        ),
        (
            "means = \"not_found\"\nmessage",
            "means = \"failed\"\nmessage",
            "errors[2].means: \"failed\" is a fate, and no error is one",
        ),
        ("means = \"not_found\"\nmessage", "means = \"action_required\"\nmessage", "\"action_required\" is a fate"),
        ("http = 404\n", "", "errors[2]: matches every answer; give it http, when, or both"),
        ("http = 404\n", "http = 4040\n", "errors[2].http: must be a number from 100 to 599"),
        (
            "rule = \"pace\" }\n\"declined+\"",
            "rule = \"peace\" }\n\"declined+\"",
            "\"peace\" is no id of [[rules]]; there are pace",
        ),
        ("believe = [200]", "believe = [200, 429]", "answer.believe: 429 is never read"),
        // Amounts.
        ("amount = { at", "#amount = { at", "answer.amount: is missing; write { at, unit, currency }, or { none"),
        (
            "amount = { at = \"/payment/amount\", unit = \"minor\"",
            "amount = { at = \"/payment/amount\"",
            "answer.amount.unit: is missing",
        ),
        (", currency = \"/payment/currency\"", "", "has not exactly one of currency (a pointer) and currency_is"),
        ("unit = \"minor\"", "unit = \"major\"", "has an exponent, which only minor units have"),
        // Floors and plan.
        ("[floors]\n", "[floors]\nnone = \"x\"\n", "floors: has both none and a floor"),
        (
            "every = { wait = \"5m\", rule = \"pace\" }",
            "every = { wait = \"5m\" }",
            "floors.every.rule: is missing; a floor names the sentence",
        ),
        ("first = \"2m\"", "first = \"1m\"", "plan: first = \"1m\" is below the documented floor, 2m"),
        ("{ every = \"5m\" }", "{ every = \"299s\" }", "plan: every = \"4m59s\" is below the documented floor, 5m"),
        // Pointers.
        (
            "\"/payment/reason\", ",
            "\"/payment/because\", ",
            "answer.reason[0]: \"/payment/because\" points to nothing in any example",
        ),
        ("message = \"/error/text\"", "message = \"error.text\"", "errors[3].message: \"error.text\" is no JSON Pointer"),
        // Examples.
        (
            "expect = { outcome = \"cancelled\" }",
            "expect = { outcome = \"failed\" }",
            "expect.outcome is \"failed\", and it comes to \"cancelled\"",
        ),
        ("\"declined\",\"reason\"", "\"void\",\"reason\"", "is final (failed) and no example has it; add one"),
        ("account = { merchant = \"m-1\", ", "account = { ", "its account cannot be opened: merchant is missing"),
        ("api_key = \"acme-key-0001\"", "api_key = \"short\"", "api_key has 5 characters where 8 to 64 are documented"),
        ("x-key = \"acme-key-0001\"", "x-key = \"acme-key-0002\"", "request.headers.x-key is \"acme-key-0002\""),
        (
            "amount = \"12.50\"\ncurrency = \"EUR\"\nnow",
            "amount = \"12.51\"\ncurrency = \"EUR\"\nnow",
            "amount or currency are not those of [example]",
        ),
    ] {
        let told = problems(&with(old, new));
        if !told.contains(said) || !told.lines().all(|line| line.starts_with("acme.toml, line ")) {
            wrong.push(format!("{old:?} → {new:?}\nwanted: {said}\ntold: {told}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn an_error_alone_never_shows_a_secret_of_an_example() {
    let told = problems(&with("api_key = { secret = true, length = [8, 64] }", "api_key = { form = \"pem-rsa\" }"));
    assert!(told.contains("api_key is no RSA private key in PEM") && !told.contains("acme-key-0001"), "{told}");
}

#[test]
fn a_request_that_carries_nothing_of_the_row_is_refused() {
    let bare = ACME
        .replace("payments/{reference}\"", "payments\"")
        .replace("query = { wallet = \"{params.wallet}\" }\n", "")
        .replace("json = { reference = \"{reference}\", ", "json = { ")
        .replace(", x-pin = \"{params.pin}\"", "");
    assert!(problems(&bare).contains("request: carries nothing of the row"), "{}", problems(&bare));
}

#[test]
fn an_example_that_stays_final_when_the_answer_changes_is_refused() {
    // Nothing else shows whose answer it is, and no guard would notice.
    let careless = with("believe = [200]", "believe = [200, 404]")
        .replace("[[errors]]\nhttp = 404\nmeans = \"not_found\"\nmessage = \"/message\"\n", "");
    let told = problems(&careless);
    assert!(told.contains("with HTTP 404 it still ends succeeded; make the file tell the two apart"), "{told}");
}

#[test]
fn a_file_that_is_no_text_no_toml_or_no_file_is_told_so() {
    let refused = |bytes: &[u8]| Declaration::inspect("f.toml", bytes).expect_err("refused").join("\n");
    assert!(refused(b"format = 1\nname = \"\xff\"").starts_with("f.toml, line 2: is not UTF-8"));
    assert!(refused(b"format = 1\nname = \"").starts_with("f.toml, line 2: no valid TOML"));
    assert!(refused(b"").contains("format: is missing; write format = 1"));
    assert!(refused(&vec![b'#'; 10 << 20]).contains("has more than"));
    assert!(refused(b"format = 1\nformat = 1").contains("line 2: no valid TOML"));
    assert!(read_declaration(Path::new("/nowhere/acme.toml")).expect_err("missing").contains("the file cannot be read"));
    assert!(read_declaration(Path::new("/")).expect_err("a folder").contains("the file cannot be read"));
    let big = file("big.toml", &"#".repeat(10 << 20));
    assert!(Declaration::inspect("big", &read_declaration(&big.0).expect("read")).is_err(), "and no more of it is read than that");
}

#[test]
fn deep_and_endless_toml_is_refused_without_harm() {
    for text in [format!("x = {}1{}", "[".repeat(100_000), "]".repeat(100_000)), format!("{}x = 1", "a.".repeat(100_000))] {
        assert!(inspect(&text).is_err());
    }
}

struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A file of that name in a folder of this process.
fn file(name: &str, text: &str) -> Temporary {
    let folder = std::env::temp_dir().join(format!("paypoll-declared-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let path = folder.join(name);
    std::fs::write(&path, text).expect("a file");
    Temporary(path)
}

fn load(files: &[&Temporary], variables: &[(&str, &str)]) -> Result<Config, String> {
    let paths: Vec<PathBuf> = files.iter().map(|file| file.0.clone()).collect();
    let database = ("DATABASE_URL", "postgres://127.0.0.1/none");
    let variables = variables.iter().chain([&database]).map(|&(key, value)| (key.to_owned(), value.to_owned()));
    Config::load(&paths, variables, 1.0).map_err(|error| error.to_string())
}

const SECTION: &str = "[providers.acme]\ndeclaration = \"DECLARATION\"\nenabled = true\nregion = \"eu\"\n\
                       [providers.acme.accounts.default]\nmerchant = \"m-1\"\napi_key = \"acme-key-0001\"\n";

#[test]
fn a_configuration_names_the_file_relative_to_itself_and_adds_what_a_merchant_has() {
    let _file = file("named.toml", ACME);
    let section = file("section.toml", &SECTION.replace("DECLARATION", "named.toml"));
    let config = load(&[&section], &[]).expect("valid");
    let acme = &config.providers[0];
    assert_eq!((acme.descriptor.name, acme.base_url.as_str()), ("acme", "https://api.acme.example/v2"));
    // Of a documented rate of 5 no second sees more: 4 a second, and one more at once.
    assert_eq!((acme.rate.per_second, acme.rate.burst, acme.timeout.as_secs(), acme.max_in_flight), (4.0, 2, 10, 64));
    assert_eq!(acme.rules.plan.first.min.as_secs(), 120);
    assert!(providers::all().iter().any(|known| known.name == "acme"));
    let text = load(&[&section], &[("PAYPOLL__PROVIDERS__ACME__SCHEDULE", "{ first = \"3m\" }")]).expect("valid");
    assert_eq!(text.providers[0].rules.plan.first.min.as_secs(), 180);
}

#[test]
fn no_configuration_goes_below_a_declared_floor_or_beyond_a_documented_rate() {
    let _file = file("floors.toml", ACME);
    let section = file("floors-section.toml", &SECTION.replace("DECLARATION", "floors.toml"));
    for (key, value, said) in [
        ("SCHEDULE", "{ first = \"1m\" }", "schedule.first = \"1m\": the provider's documented floor is 2m"),
        ("SCHEDULE", "{ phases = [{ every = \"1m\" }] }", "the provider's documented floor is 5m"),
        ("RATE_LIMIT", "{ per_second = 5, burst = 2 }", "the provider's documented limit, 5 requests in any second"),
        ("RATE_LIMIT__PER_SECOND", "10", "documented limit, 5 requests in any second; lower one of them"),
    ] {
        let told = load(&[&section], &[(&format!("PAYPOLL__PROVIDERS__ACME__{key}"), value)]).expect_err(value);
        assert!(told.contains(said), "{told}");
    }
    let allowed = load(&[&section], &[("PAYPOLL__PROVIDERS__ACME__RATE_LIMIT", "{ per_second = 5, burst = 1 }")]);
    assert_eq!(allowed.expect("valid").providers[0].rate.per_second, 5.0);
}

#[test]
fn the_environment_alone_can_declare_a_provider() {
    let acme = file("environment.toml", &ACME.replace("name = \"acme\"", "name = \"acme-pay\""));
    let set = |key: &str, value: &str| (format!("PAYPOLL__PROVIDERS__ACME_PAY__{key}"), value.to_owned());
    let variables = [
        set("DECLARATION", &acme.0.to_string_lossy()),
        set("ENABLED", "true"),
        set("REGION", "eu"),
        set("ACCOUNTS__DEFAULT__MERCHANT", "m-1"),
        set("ACCOUNTS__DEFAULT__API_KEY", "acme-key-0001"),
    ];
    let variables: Vec<(&str, &str)> = variables.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    assert_eq!(load(&[], &variables).expect("valid").providers[0].descriptor.name, "acme-pay");
}

#[test]
fn a_section_that_names_a_wrong_file_is_told_what_is_wrong() {
    let _acme = file("wrong-acme.toml", &ACME.replace("name = \"acme\"", "name = \"acme-wrong\""));
    let _broken = file("wrong-broken.toml", &ACME.replace("title", "tittle"));
    for (name, declaration, said) in [
        ("other", "wrong-acme.toml", "the file declares \"acme-wrong\"; write [providers.acme-wrong]"),
        ("khalti", "wrong-acme.toml", "the file declares \"acme-wrong\""),
        ("acme", "wrong-broken.toml", "wrong-broken.toml, line 4: tittle: is not a known key"),
        ("acme", "nowhere.toml", "the file cannot be read"),
    ] {
        let section = format!("[providers.{name}]\ndeclaration = \"{declaration}\"\n");
        let section = file(&format!("wrong-{name}-{declaration}"), &section);
        let told = load(&[&section], &[]).expect_err(declaration);
        assert!(told.contains(said), "{told}");
    }
    let lacking = file(
        "lacking.toml",
        "[providers.acme-wrong]\ndeclaration = \"wrong-acme.toml\"\nenabled = true\n\
                        [providers.acme-wrong.accounts.default]\nmerchant = \"m/1\"\napi_key = \"acme-key-0001\"\n",
    );
    let told = load(&[&lacking], &[]).expect_err("no region");
    assert!(told.contains("providers.acme-wrong.accounts.default.merchant is not a word"), "{told}");
}

fn acme() -> Box<dyn Provider> {
    let declaration = inspect(ACME).and_then(Inspection::accept).expect("in order");
    let settings = Settings {
        base_url: "http://127.0.0.1:1".into(),
        options: [("region".to_owned(), "eu".to_owned())].into(),
        account: [("merchant", "m-1"), ("api_key", "acme-key-0001")].map(|(key, value)| (key.to_owned(), value.into())).into(),
    };
    Box::leak(Box::new(declaration)).open(&settings).expect("complete settings")
}

fn ask<'a>(reference: &'a str, params: &'a Value) -> Ask<'a> {
    Ask { reference, params, now: DateTime::from_timestamp(1_795_770_000, 0).expect("a time"), token: None, amount: None }
}

fn response(status: u16, body: &str) -> Response {
    Response { status, retry_after: None, body: body.as_bytes().to_vec().into() }
}

#[test]
fn a_row_that_cannot_be_asked_about_is_told_what_it_lacks() {
    let provider = acme();
    let request = |reference: &str, params: Value| provider.request(ask(reference, &params)).map(|request| request.url);
    assert_eq!(
        request("a b", json!({"wallet": "w"})).as_deref(),
        Ok("http://127.0.0.1:1/eu/merchants/m-1/payments/a%20b?wallet=w")
    );
    assert_eq!(request("R", json!({})), Err("params.wallet is missing".into()));
    assert!(request("R", json!({"wallet": 7})).is_err_and(|why| why.contains("params.wallet is not text")));
    assert!(
        request("R", json!({"wallet": "w", "pin": "é"})).is_err_and(|why| why.contains("params.pin has characters that no header"))
    );
    assert!(request("..", json!({"wallet": "w"})).is_err_and(|why| why.contains("no URL can carry")));
}

#[test]
fn an_answer_is_judged_in_one_order() {
    let provider = acme();
    let params = json!({"wallet": "w-1"});
    let read = |status: u16, body: &str| provider.read(ask("R", &params), &response(status, body));
    let payment = |inner: &str| format!(r#"{{"ok":true,"payment":{{"reference":"R","merchant":"m-1",{inner}}}}}"#);
    // 1. The code alone.
    assert!(matches!(read(429, "x"), Outcome::RateLimited { .. }));
    assert!(matches!(read(302, &payment(r#""status":"void""#)), Outcome::Unusable { .. }));
    assert!(matches!(read(503, "{}"), Outcome::ServerError { status: 503, .. }));
    // 2. No JSON object.
    assert!(matches!(read(200, "[1]"), Outcome::Unusable { .. }));
    assert!(matches!(read(404, "<html>"), Outcome::Unusable { .. }));
    // 3. Another identifier, before any error rule.
    assert!(
        matches!(read(404, r#"{"message":"x","payment":{"reference":"S"}}"#), Outcome::Unusable { why } if why.contains("another"))
    );
    assert!(matches!(
        read(200, r#"{"ok":true,"payment":{"reference":["R"],"merchant":"m-1","status":"void"}}"#),
        Outcome::Unusable { .. }
    ));
    // 4. Errors.
    assert!(matches!(read(404, r#"{"message":"gone"}"#), Outcome::NotFound { message } if message == "HTTP 404: gone"));
    assert!(matches!(read(200, r#"{"error":{"code":17.0,"text":"x"}}"#), Outcome::CredentialsRejected { park: true, .. }));
    // 5. The code.
    assert!(matches!(read(403, r#"{"message":"no"}"#), Outcome::CredentialsRejected { park: false, .. }));
    assert!(matches!(read(500, &payment(r#""status":"void""#)), Outcome::ServerError { status: 500, .. }));
    assert!(matches!(read(201, &payment(r#""status":"void""#)), Outcome::Unusable { .. }));
    // 6. Guards.
    assert!(matches!(read(200, r#"{"ok":false,"message":"later"}"#), Outcome::RequestFailed { message } if message == "later"));
    // 7. Identity.
    assert!(matches!(read(200, r#"{"ok":true,"payment":{"reference":"R","status":"void"}}"#), Outcome::Unusable { .. }));
    assert!(matches!(
        read(200, r#"{"ok":true,"payment":{"reference":null,"merchant":"m-1","status":"void"}}"#),
        Outcome::Unusable { .. }
    ));
    // 8. The word.
    assert!(matches!(read(200, &payment(r#""detail":"captured""#)), Outcome::Unusable { .. }));
    assert!(matches!(read(200, &payment(r#""status":{},"detail":"x""#)), Outcome::Unusable { .. }));
    assert!(matches!(read(200, &payment(r#""status":"Void""#)), Outcome::UnknownStatus { status: word } if word == "Void+"));
    assert!(matches!(read(200, &payment(r#""status":"unknown""#)), Outcome::NotFound { .. }));
    // 9. Amount and currency, for a success alone.
    for odd in [
        r#""status":"paid","detail":"captured""#,
        r#""status":"paid","detail":"captured","amount":12.5,"currency":"EUR""#,
        r#""status":"paid","detail":"captured","amount":"much","currency":"EUR""#,
        r#""status":"paid","detail":"captured","amount":1250"#,
        r#""status":"paid","detail":"captured","amount":1250,"currency":7"#,
    ] {
        assert!(matches!(read(200, &payment(odd)), Outcome::Unusable { .. }), "{odd}");
    }
    let failed = read(200, &payment(r#""status":"declined","amount":"much""#));
    assert!(matches!(&failed, Outcome::Status(status) if status.reported == Reported::Failed), "{failed:?}");
    // 10. What is kept.
    let paid = read(200, &payment(r#""status":"paid","detail":"captured","amount":1250,"currency":"KWD","payer":"JOHN DOE""#));
    let Outcome::Status(paid) = paid else { panic!("{paid:?}") };
    assert_eq!(paid.amount, paypoll::domain::Amount::Told("1.25".parse().expect("a decimal")));
    assert_eq!(*paid.details, json!({"payment": {"status": "paid", "reference": "R", "amount": 1250}}));
}

#[test]
fn secrets_of_the_account_and_the_row_are_scrubbed_and_nothing_but_the_list_is_kept() {
    let provider = acme();
    let params = json!({"wallet": "w-1", "pin": "pin-0001"});
    let ask = ask("R", &params);
    let redaction = Redaction::new(provider.secrets(ask), provider.kept(ask));
    let body = r#"{"message":"key acme-key-0001 and pin-0001","payer":"JOHN DOE","payment":{"status":"paid","payer":"JOHN"}}"#;
    let kept = redaction.body(body.as_bytes()).to_string();
    assert!(kept.contains(REDACTED) && kept.contains("paid"), "{kept}");
    for secret in ["acme-key-0001", "pin-0001", "JOHN"] {
        assert!(!kept.contains(secret), "{kept}");
    }
    assert_eq!(provider.exclusive_key(ask), Some("w-1"));
}

/// The files in `config/providers/`.
fn shipped() -> Vec<(PathBuf, Inspection)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/providers");
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    let inspect = |file: &PathBuf| {
        let name = file.file_name().expect("a name").to_string_lossy().into_owned();
        let bytes = std::fs::read(file).expect("a file");
        Declaration::inspect(&name, &bytes).unwrap_or_else(|problems| panic!("{}", problems.join("\n")))
    };
    files.iter().map(|file| (file.clone(), inspect(file))).collect()
}

#[test]
fn every_shipped_file_is_in_order_and_no_changed_answer_ends_a_transaction() {
    let shipped = shipped();
    assert_eq!(shipped.len(), 8);
    let mut total = 0;
    for (file, inspection) in &shipped {
        let mutations: Vec<_> = inspection.tried.iter().flat_map(|tried| &tried.mutations).collect();
        let ended = mutations.iter().filter(|mutated| mutated.ends.is_some()).count();
        let (examples, changed) = (inspection.tried.len(), mutations.len());
        println!("{}: {examples} examples, {changed} changed answers, {ended} final", inspection.declaration().name());
        total += changed;
        assert!(inspection.is_fine() && ended == 0, "{}: {:?} {:?}", file.display(), inspection.tried, inspection.missing);
        assert_eq!(Some(inspection.declaration().name()), file.file_stem().and_then(|stem| stem.to_str()));
        let text = std::fs::read_to_string(file).expect("text");
        assert!(
            text.lines().take(12).any(|line| line.contains("Not tried against")),
            "{}: says how far it can be trusted",
            file.display()
        );
        assert!(text.contains("2026-11-27"), "{}: says when its pages were read", file.display());
    }
    println!("{total} changed answers in all");
}

/// A shipped provider, opened with the account of its examples.
struct Subject {
    declaration: &'static Declaration,
    provider: Box<dyn Provider>,
    params: Value,
}

const REFERENCE: &str = "04822b2a-0896-4612-9e9e-000000000001";

impl Subject {
    fn all() -> Vec<Self> {
        let open = |(_, inspection): (PathBuf, Inspection)| {
            let declaration: &'static Declaration = Box::leak(Box::new(inspection.accept().expect("in order")));
            let played = declaration.played();
            let settings = Settings {
                base_url: "http://127.0.0.1:1/gate".into(),
                options: played.options,
                account: played.account.into_iter().map(|(key, value)| (key, value.into())).collect(),
            };
            let provider = declaration.open(&settings).expect("the account of the examples");
            Self { declaration, provider, params: played.params }
        };
        shipped().into_iter().map(open).collect()
    }

    fn ask(&self) -> Ask<'_> {
        Ask { token: Some("fetched-0001"), ..ask(REFERENCE, &self.params) }
    }

    /// What the provider's own side makes of the request that this side sends.
    fn known(&self) -> paypoll::providers::declared::Known {
        use paypoll::providers::declared::{Came, Recognised};
        let request = self.provider.request(self.ask()).expect("a request");
        let rest = request.url.strip_prefix("http://127.0.0.1:1/gate").expect("the address");
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let query: Vec<(String, String)> =
            query.split('&').filter_map(|pair| pair.split_once('=')).map(|(key, value)| (key.into(), value.into())).collect();
        let headers: Vec<(String, String)> =
            request.headers.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        let came = Came {
            method: if request.method == paypoll::wire::Method::Get { "GET" } else { "POST" },
            path,
            query: &query,
            headers: &headers,
            body: request.body.as_deref().unwrap_or_default(),
            at: self.ask().now,
            tokens: &["fetched-0001".to_owned()],
        };
        match self.declaration.recognise(&came) {
            Ok(Recognised::Status(known)) => known,
            other => panic!("{}: {other:?}", self.declaration.name()),
        }
    }

    fn read(&self, status: u16, body: &str) -> Outcome {
        self.provider.read(self.ask(), &response(status, body))
    }
}

fn is_final(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Status(status) if !matches!(status.reported, Reported::Pending | Reported::ActionRequired(_)))
}

#[test]
fn every_shipped_provider_recognises_its_own_requests_and_answers_about_what_was_asked() {
    for subject in Subject::all() {
        let (name, known) = (subject.declaration.name(), subject.known());
        assert_eq!(known.reference, REFERENCE, "{name}");
        for script in subject.declaration.scripts() {
            let told = subject.declaration.told(Some(&script), &known).expect("an example");
            let outcome = subject.read(told.http, &told.body);
            // Examples about another row, such as one in another currency, are about another row here too.
            assert_eq!(Some(outcome.name()), subject.declaration.expected(&script), "{name} {script}: {outcome:?}");
        }
    }
}

#[test]
fn no_shipped_provider_believes_what_is_no_answer_about_the_payment() {
    use paypoll::domain::Health;
    use std::time::Duration;
    for subject in Subject::all() {
        let (name, known) = (subject.declaration.name(), subject.known());
        let read = |status: u16, body: &str| subject.read(status, body);
        for body in ["", " ", "<html>Sign in</html>", "null", "[]", "{}", "\"paid\"", "{", "\u{feff}{}", "{\"a\":1,\"a\":2}"] {
            for status in [200, 201, 202, 204, 400, 403, 404, 409, 422] {
                assert!(!is_final(&read(status, body)), "{name}: HTTP {status} {body}");
            }
            assert!(matches!(read(429, body), Outcome::RateLimited { wait: None }), "{name}: {body}");
            assert!(matches!(read(503, body), Outcome::ServerError { status: 503, .. }), "{name}: {body}");
            assert!(matches!(read(302, body), Outcome::Unusable { .. }), "{name}: {body}");
            assert_eq!(read(500, body).health(), Health::Down, "{name}: {body}");
            assert_eq!(read(401, body).health(), Health::AccountRefused, "{name}: {body}");
        }
        let slow = Response { retry_after: Some(Duration::from_secs(7)), ..response(429, "{}") };
        let outcome = subject.provider.read(subject.ask(), &slow);
        assert_eq!(outcome, Outcome::RateLimited { wait: Some(Duration::from_secs(7)) }, "{name}");
        for script in subject.declaration.scripts() {
            let told = subject.declaration.told(Some(&script), &known).expect("an example");
            if !is_final(&read(told.http, &told.body)) {
                continue;
            }
            for status in [201, 202, 302, 400, 403, 404, 429, 500, 502, 503] {
                assert!(!is_final(&read(status, &told.body)), "{name} {script}: HTTP {status}");
            }
            for end in 0..told.body.len() {
                if told.body.is_char_boundary(end) {
                    assert!(!is_final(&read(told.http, &told.body[..end])), "{name} {script}: cut at {end}");
                }
            }
            let other = told.body.replace(REFERENCE, "04822b2a-0896-4612-9e9e-000000000002");
            assert!(other == told.body || !is_final(&read(told.http, &other)), "{name} {script}: another one's");
        }
    }
}

/// The blocks of a page that begin with this fence.
fn blocks(page: &str, fence: &str) -> Vec<String> {
    let fence = format!("\n```{fence}\n");
    page.split(fence.as_str()).skip(1).map(|rest| rest.split("\n```").next().expect("a block").to_owned() + "\n").collect()
}

fn page() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/declare-a-provider.md")).expect("the page")
}

#[test]
fn what_the_page_declares_is_in_order_and_runs() {
    let page = page();
    let declared = blocks(&page, "toml");
    assert_eq!(declared.len(), 2);
    for text in &declared {
        let inspection = Declaration::inspect("page", text.as_bytes()).unwrap_or_else(|problems| panic!("{}", problems.join("\n")));
        assert!(inspection.is_fine(), "{:?} {:?}", inspection.tried, inspection.missing);
    }
    let _zebrapay = file("zebrapay.toml", &declared[0]);
    let secret = file("zebrapay-key", "key-0001\n");
    let section = &blocks(&page, "toml config")[0];
    assert!(section.contains("/run/secrets/zebrapay"));
    let section = section.replace("/run/secrets/zebrapay", &secret.0.to_string_lossy());
    let config = load(&[&file("zebrapay-config.toml", &section)], &[]).expect("valid");
    assert_eq!(config.providers[0].descriptor.name, "zebrapay");
    assert!(declared[1].lines().count() <= 12, "twelve lines, as the page says of it");
    assert!(blocks(&page, "python")[0].lines().count() <= 25);
}

#[test]
fn the_page_names_every_key_and_every_meaning_of_the_language() {
    let page = page();
    for word in [
        "pending",
        "action_required",
        "succeeded",
        "failed",
        "cancelled",
        "refunded",
        "not_found",
        "too_early",
        "throttled",
        "refused_account",
        "refused_row",
        "refused_row_park",
        "request_failed",
        "server_error",
        "body_on_get",
        "renew_before",
        "unless_told",
        "currency_is",
        "exponents",
        "hmac_sha512",
        "rsa_sha256",
        "key_as",
        "in_url",
        "pem-rsa",
        "give_up_after",
        "per_second",
        "renew_token",
        "exclusive",
        "case = \"ignore\"",
        "bom = \"skip\"",
        "by_state",
        "longest",
        "from",
    ] {
        assert!(page.contains(word), "{word}");
    }
}

/// The page's adapter, polled as paypoll polls it, where there is a Python to run it.
#[test]
fn the_adapter_of_the_page_answers_as_its_declaration_says() {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};
    let page = page();
    let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").port();
    let program = blocks(&page, "python")[0].replace("9600", &port.to_string());
    let script = file("adapter.py", &program);
    let python = Command::new("python3").arg(&script.0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let Ok(mut python) = python else { return };
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut stream = loop {
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(stream) => break stream,
            Err(_) if Instant::now() < deadline => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    };
    stream.write_all(b"GET /status/R%2F1 HTTP/1.0\r\n\r\n").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    python.kill().expect("killed");
    python.wait().expect("ended");
    let body = answer.split("\r\n\r\n").nth(1).expect("a body");
    let declaration =
        Declaration::inspect("page", blocks(&page, "toml")[1].as_bytes()).and_then(Inspection::accept).expect("in order");
    let settings = Settings { base_url: "http://127.0.0.1:9600".into(), ..Settings::default() };
    let provider = Box::leak(Box::new(declaration)).open(&settings).expect("no key is needed");
    let outcome = provider.read(ask("R/1", &Value::Null), &response(200, body));
    assert_eq!(outcome.name(), "pending", "{answer}");
}

/// DusuPay twice: from its file and compiled in.
fn both() -> (Box<dyn Provider>, Box<dyn Provider>) {
    let text = include_str!("fixtures/declared/dusupay.toml");
    let declaration = inspect(text).and_then(Inspection::accept).expect("in order");
    let settings = Settings {
        base_url: "http://127.0.0.1:1".into(),
        account: [("public_key".to_owned(), "PUBK-0001".into())].into(),
        ..Settings::default()
    };
    let declared = Box::leak(Box::new(declaration)).open(&settings).expect("a key");
    (declared, providers::find("dusupay").expect("compiled").open(&settings).expect("a key"))
}

/// Changes one thing in an answer, or breaks it.
fn mutate(answer: &Value, random: &mut impl rand::RngExt) -> String {
    let values = [
        json!(null),
        json!(""),
        json!(0),
        json!(200),
        json!(404),
        json!(403),
        json!("200"),
        json!(true),
        json!([]),
        json!({}),
        json!("success"),
        json!("error"),
        json!("COMPLETED"),
        json!("FAILED"),
        json!("CANCELLED"),
        json!("PENDING"),
        json!("completed"),
        json!("REVERSED"),
        json!("MCTREFT2WMNWZ23SBN6Y"),
        json!("MCTREFOTHER"),
        json!(2_000_000),
        json!("2000000"),
        json!(1.5),
        json!("2 M"),
        json!("UGX"),
        json!("Status check denied. Try again after 2 minutes."),
        json!("Access denied."),
    ];
    let mut changed = answer.clone();
    for _ in 0..random.random_range(0..3) {
        let in_data = random.random_bool(0.7) && changed["data"].is_object();
        let place = if in_data { &mut changed["data"] } else { &mut changed };
        let Some(map) = place.as_object_mut() else { continue };
        let keys: Vec<String> = map.keys().cloned().collect();
        if keys.is_empty() {
            continue;
        }
        let key = keys[random.random_range(0..keys.len())].clone();
        match random.random_range(0..4) {
            0 => drop(map.remove(&key)),
            _ => drop(map.insert(key, values[random.random_range(0..values.len())].clone())),
        }
    }
    let text = changed.to_string();
    match random.random_range(0..20) {
        0 => text[..random.random_range(0..text.len())].to_owned(),
        1 => format!("[{text}]"),
        2 => format!("{text}{text}"),
        3 => text.replacen('{', "{\"code\":200,", 1),
        _ => text,
    }
}

#[test]
fn dusupay_from_its_file_and_compiled_in_agree_about_ten_thousand_answers() {
    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use std::collections::BTreeMap;
    let (declared, compiled) = both();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/dusupay");
    let documents: Vec<Value> = std::fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .map(|path| serde_json::from_slice(&std::fs::read(path).expect("a file")).expect("JSON"))
        .collect();
    assert!(documents.len() >= 8);
    let mut random = StdRng::seed_from_u64(20_261_127);
    let ask = Ask { amount: Some(2_000_000.into()), ..ask("MCTREFT2WMNWZ23SBN6Y", &Value::Null) };
    let (mut same, mut differences) = (0, BTreeMap::<(&str, &str), u32>::new());
    for round in 0..10_000 {
        use rand::RngExt;
        let document = &documents[random.random_range(0..documents.len())];
        let code = document["code"].as_u64().and_then(|code| u16::try_from(code).ok()).unwrap_or(200);
        let others = [200, 201, 302, 400, 401, 403, 404, 429, 500, 503];
        let status = if random.random_bool(0.8) { code } else { others[random.random_range(0..others.len())] };
        let body = if round < documents.len() { documents[round].to_string() } else { mutate(document, &mut random) };
        let response = response(status, &body);
        let (ours, theirs) = (declared.read(ask, &response), compiled.read(ask, &response));
        if ours.name() == theirs.name() {
            same += 1;
            if let (Outcome::Status(ours), Outcome::Status(theirs)) = (&ours, &theirs) {
                assert_eq!(ours.word, theirs.word);
            }
            continue;
        }
        // What the file makes final, the compiled one does too; never the other way round but for a
        // success that lacks something.
        assert!(!is_final(&ours), "HTTP {status} {body}: {ours:?} and {theirs:?}");
        if is_final(&theirs) {
            let Outcome::Status(theirs) = &theirs else { panic!("{theirs:?}") };
            let lacks = theirs.currency.is_none() || theirs.amount == paypoll::domain::Amount::Unreadable;
            // A success without a currency, or with an amount that is none: the file's reader does
            // not believe it, the compiled one leaves it to the comparison with the row.
            assert!(theirs.reported == Reported::Succeeded && lacks, "HTTP {status} {body}: {ours:?} and {theirs:?}");
        }
        *differences.entry((theirs.name(), ours.name())).or_default() += 1;
    }
    println!("{same} of 10000 alike; compiled and declared otherwise: {differences:?}");
    // Explained: errors whose "code" is not the HTTP code, or whose "status" is none of the two,
    // which the compiled reader tells apart and the file does not; and successes that lack
    // something. Both readings leave the transaction where it is.
    assert!(same > 9_000, "{same}");
}

/// How many executions the fuzz has: `PAYPOLL_FUZZ` sets it.
fn executions() -> usize {
    std::env::var("PAYPOLL_FUZZ").ok().and_then(|text| text.parse().ok()).unwrap_or(20_000)
}

/// Some bytes of a text changed, left out, doubled, or taken from another one.
fn scrambled(text: &str, others: &[String], random: &mut impl rand::RngExt) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    for _ in 0..random.random_range(1..4) {
        let at = random.random_range(0..=bytes.len());
        match random.random_range(0..6) {
            0 if at < bytes.len() => bytes[at] = random.random(),
            1 if at < bytes.len() => drop(bytes.remove(at)),
            2 => bytes.truncate(at),
            3 => {
                let end = (at + random.random_range(0..40)).min(bytes.len());
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            4 => bytes.insert(at, b"{}[]\":,\\=.*0\n"[random.random_range(0..13)]),
            _ => {
                let other = others[random.random_range(0..others.len())].as_bytes();
                let from = random.random_range(0..other.len());
                let end = (from + random.random_range(0..60)).min(other.len());
                bytes.splice(at..at, other[from..end].iter().copied());
            }
        }
    }
    bytes
}

#[test]
fn no_answer_makes_a_declared_reader_panic_or_believe_what_is_not_about_us() {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};
    let subjects = Subject::all();
    let mut random = StdRng::seed_from_u64(20_261_128);
    let bodies: Vec<Vec<String>> = subjects
        .iter()
        .map(|subject| {
            let known = subject.known();
            let told = |script: String| subject.declaration.told(Some(&script), &known).expect("an example").body;
            subject.declaration.scripts().into_iter().map(told).collect()
        })
        .collect();
    let mut believed = 0;
    for _ in 0..executions() {
        let index = random.random_range(0..subjects.len());
        let (subject, bodies) = (&subjects[index], &bodies[index]);
        let body = scrambled(&bodies[random.random_range(0..bodies.len())], bodies, &mut random);
        let status = [200, 200, 200, 201, 302, 400, 401, 404, 429, 500, 503][random.random_range(0..11)];
        let outcome = subject.provider.read(subject.ask(), &Response { status, retry_after: None, body: body.clone().into() });
        if is_final(&outcome) {
            believed += 1;
            let text = String::from_utf8(body).expect("only text is believed");
            let own = [REFERENCE, subject.params["externalId"].as_str().unwrap_or(REFERENCE)];
            assert!(status == 200 && own.iter().any(|own| text.contains(own)), "{}: {text}", subject.declaration.name());
            assert!(serde_json::from_str::<Value>(&text).is_ok_and(|value| value.is_object()), "{text}");
        }
    }
    println!("{} answers, {believed} of them still final", executions());
}

#[test]
fn no_file_makes_the_reader_of_files_panic() {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};
    let mut random = StdRng::seed_from_u64(20_261_129);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/providers");
    let mut files: Vec<String> = std::fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| std::fs::read_to_string(entry.expect("an entry").path()).expect("text"))
        .collect();
    files.push(ACME.to_owned());
    let (mut accepted, count) = (0, executions() / 100);
    for _ in 0..count {
        let text = &files[random.random_range(0..files.len())];
        let bytes = scrambled(text, &files, &mut random);
        match Declaration::inspect("fuzz.toml", &bytes) {
            Ok(inspection) => accepted += u32::from(inspection.is_fine()),
            Err(problems) => {
                assert!(!problems.is_empty());
                assert!(problems.iter().all(|problem| problem.starts_with("fuzz.toml")), "{problems:?}");
            }
        }
    }
    println!("{count} files, {accepted} of them still in order");
}
