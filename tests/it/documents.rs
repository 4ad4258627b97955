//! What is written stays true: the log's page, the alerts, the dashboard and the runbook against
//! the code; the examples by running them.

use crate::support::database;
use paypoll::cli::Cli;
use paypoll::domain::{Outcome, State};
use paypoll::explain::REASONS;
use paypoll::providers::REGISTRY;
use paypoll::telemetry::event;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// Of an event: its levels and its fields.
type Shape = (BTreeSet<String>, BTreeSet<String>);

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// Every source file of the program.
fn sources() -> Vec<String> {
    fn collect(folder: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(fs::read_to_string(&path).unwrap());
            }
        }
    }
    let mut found = Vec::new();
    collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    found
}

/// The events as the program logs them. What stands in the modules' own tests does not count.
fn logged() -> BTreeMap<String, Shape> {
    let mut events: BTreeMap<String, Shape> = BTreeMap::new();
    for source in sources() {
        let program = source.split("#[cfg(test)]").next().unwrap();
        for (at, _) in program.match_indices("event = event::") {
            let (level, start) = ["error", "warn", "info", "debug"]
                .into_iter()
                .filter_map(|level| program[..at].rfind(&format!("{level}!(")).map(|start| (level, start + level.len() + 2)))
                .max_by_key(|(_, start)| *start)
                .unwrap();
            let arguments = arguments(&program[start..]);
            let name = arguments[0].trim_start_matches("event = event::").to_lowercase();
            let shape = events.entry(name).or_default();
            shape.0.insert(level.to_owned());
            let fields = arguments[1..].iter().take_while(|argument| !argument.starts_with('"'));
            shape.1.extend(fields.map(|field| field.split('=').next().unwrap().trim_start_matches('%').trim().to_owned()));
        }
    }
    events
}

/// The arguments of a call whose opening parenthesis stands just before `text`.
fn arguments(text: &str) -> Vec<String> {
    let (mut arguments, mut current, mut depth) = (Vec::new(), String::new(), 0);
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        match c {
            '"' => {
                current.push(c);
                while let Some(c) = characters.next() {
                    current.push(c);
                    match c {
                        '\\' => current.extend(characters.next()),
                        '"' => break,
                        _ => {}
                    }
                }
                continue;
            }
            ')' if depth == 0 => break,
            ',' if depth == 0 => {
                arguments.push(std::mem::take(&mut current).trim().to_owned());
                continue;
            }
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
        current.push(c);
    }
    arguments.push(current.trim().to_owned());
    arguments.retain(|argument| !argument.is_empty());
    arguments
}

/// The words between back-ticks.
fn quoted(text: &str) -> BTreeSet<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The events as `docs/logs.md` documents them.
fn documented() -> BTreeMap<String, Shape> {
    let page = read("docs/logs.md");
    let section = |section: &str| {
        let (heading, body) = section.split_once('\n').unwrap();
        let (name, levels) = heading.split_once(" · ").unwrap();
        let fields = body.split("\n\n").find_map(|paragraph| paragraph.trim().strip_prefix("Fields: ")).unwrap();
        let levels = levels.split(", ").map(str::to_owned).collect();
        (name.trim_matches('`').to_owned(), (levels, quoted(fields)))
    };
    page.split("\n## ").skip(1).map(section).collect()
}

#[test]
fn the_logs_page_has_every_event_with_its_levels_and_fields_and_no_other() {
    let (logged, documented) = (logged(), documented());
    assert_eq!(logged, documented);
    let all: BTreeSet<String> = event::ALL.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(documented.into_keys().collect::<BTreeSet<_>>(), all);
}

/// The words of a text that begin with `paypoll_`, without what a histogram appends.
fn metric_names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| word.starts_with("paypoll_"));
    let base = |word: &str| ["_bucket", "_sum", "_count"].iter().find_map(|end| word.strip_suffix(end)).unwrap_or(word).to_owned();
    words.map(base).collect()
}

/// The metrics that the code names in their families.
fn metrics() -> BTreeSet<String> {
    let source = read("src/ops/metrics.rs");
    metric_names(source.split("#[cfg(test)]").next().unwrap())
}

#[test]
fn alerts_and_dashboard_use_only_metrics_that_exist() {
    let known = metrics();
    assert!(known.len() >= 12, "{known:?}");
    for path in ["deploy/alerts.yml", "deploy/alerts_test.yml", "deploy/grafana.json"] {
        let used = metric_names(&read(path));
        assert!(!used.is_empty(), "{path}");
        let unknown: Vec<_> = used.difference(&known).collect();
        assert!(unknown.is_empty(), "{path} uses {unknown:?}");
    }
}

#[test]
fn alerts_and_dashboard_name_only_outcomes_and_states_that_exist() {
    let states: Vec<&str> = State::ALL.into_iter().map(State::as_str).collect();
    let labels = [("outcome", &Outcome::NAMES[..]), ("to", &states[..]), ("state", &states[..])];
    for path in ["deploy/alerts.yml", "deploy/grafana.json"] {
        let text = read(path).replace("\\\"", "\"");
        for (label, known) in labels {
            for matcher in ["=", "=~"] {
                for part in text.split(&format!("{label}{matcher}\"")).skip(1) {
                    for value in part.split('"').next().unwrap().split('|') {
                        assert!(known.contains(&value), "{path}: {label}{matcher}\"{value}\"");
                    }
                }
            }
        }
    }
}

/// How every alert names its section: by an address that opens from wherever the alert is read.
const RUNBOOK: &str = "runbook_url: https://docs.example.com/paypoll/runbook.md#";

#[test]
fn every_alert_has_its_section_in_the_runbook_and_every_link_leads_somewhere() {
    let anchor = |heading: &str| heading.to_lowercase().replace(' ', "-");
    let headings =
        |path: &str| -> BTreeSet<String> { read(path).lines().filter_map(|line| line.strip_prefix("## ").map(anchor)).collect() };
    let runbook = headings("docs/runbook.md");
    let alerts = read("deploy/alerts.yml");
    let linked: BTreeSet<String> = alerts.lines().filter_map(|line| line.trim().strip_prefix(RUNBOOK).map(str::to_owned)).collect();
    assert_eq!(alerts.matches("- alert: ").count(), alerts.matches(RUNBOOK).count());
    assert_eq!(linked, runbook, "each alert has a section, and each section an alert");
}

/// The pages for people, by their path.
fn pages() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages = Vec::new();
    for folder in ["", "docs", "docs/decisions", "docs/providers"] {
        let names = fs::read_dir(root.join(folder)).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let names = names.filter(|name| name.ends_with(".md"));
        pages.extend(names.map(|name| if folder.is_empty() { name } else { format!("{folder}/{name}") }));
    }
    pages.sort();
    pages
}

/// The anchors of a page: its headings as they stand in a link.
fn anchors(path: &str) -> BTreeSet<String> {
    let plain = |heading: &str| -> String {
        let kept = heading.to_lowercase().replace(' ', "-");
        kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect()
    };
    read(path).lines().filter(|line| line.starts_with('#')).map(|line| plain(line.trim_start_matches('#').trim())).collect()
}

#[test]
fn every_link_between_documents_leads_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut links = 0;
    for page in pages() {
        let text = read(&page);
        // What stands in a fenced block is no link.
        let prose: String = text.split("\n```").step_by(2).collect();
        for link in prose.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            if link.starts_with("http") {
                continue;
            }
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match path {
                "" => page.clone(),
                _ => {
                    let joined = root.join(&page).parent().unwrap().join(path);
                    let found = joined.canonicalize().unwrap_or_else(|_| panic!("{page}: {link} leads nowhere"));
                    found.strip_prefix(root.canonicalize().unwrap()).unwrap().to_str().unwrap().to_owned()
                }
            };
            if !anchor.is_empty() {
                assert!(anchors(&target).contains(anchor), "{page}: {link}: no such heading in {target}");
            }
            links += 1;
        }
    }
    assert!(links > 20, "{links}");
}

#[test]
fn every_file_that_the_documents_name_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders = ["src/", "tests/", "docs/", "config/", "deploy/", "migrations/", "benches/", "scripts/", ".ci/"];
    let mut named = 0;
    for page in pages() {
        let text = read(&page);
        let prose: String = text.split("\n```").step_by(2).collect();
        let files = prose.split('`').skip(1).step_by(2).filter(|code| folders.iter().any(|folder| code.starts_with(folder)));
        // A provider that does not exist stands for any.
        for file in files.filter(|file| !file.contains(char::is_whitespace) && !file.contains("acme")) {
            assert!(root.join(file).exists(), "{page}: there is no {file}");
            named += 1;
        }
    }
    assert!(named > 60, "{named}");
}

/// The longest line that a diff side by side shows whole.
const COLUMNS: usize = 100;
/// The longest paragraph that is read and not skipped.
const LINES: usize = 6;

#[test]
fn no_document_has_lines_or_paragraphs_that_nobody_reads_to_their_end() {
    let mut found = Vec::new();
    for page in pages() {
        let (mut fenced, mut paragraph) = (false, 0);
        for (number, line) in read(&page).lines().enumerate() {
            let text = line.trim_start_matches(['>', ' ']);
            fenced ^= text.starts_with("```");
            let is_item = text.starts_with("- ") || text.split_once(". ").is_some_and(|(n, _)| n.parse::<u32>().is_ok());
            // A table's row and a link cannot be wrapped.
            let is_prose = !fenced && !text.is_empty() && !text.starts_with(['|', '#']) && !text.starts_with("```");
            paragraph = if is_prose { if is_item { 1 } else { paragraph + 1 } } else { 0 };
            if is_prose && line.chars().count() > COLUMNS && text.contains(' ') {
                found.push(format!("{page}:{}: more than {COLUMNS} columns", number + 1));
            }
            if paragraph == LINES + 1 {
                found.push(format!("{page}:{}: a paragraph of more than {LINES} lines", number + 1));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn the_changelog_and_what_is_deployed_are_of_this_version() {
    let version = env!("CARGO_PKG_VERSION");
    assert!(read("CHANGELOG.md").contains(&format!("\n## {version} - ")), "CHANGELOG.md has no section {version}");
    let images = read("deploy/kubernetes.yaml");
    let images: Vec<&str> = images.lines().filter_map(|line| line.trim().strip_prefix("image: ")).collect();
    assert_eq!(images, [format!("paypoll:{version}"), format!("paypoll:{version}")]);
}

/// A command line's words, as a shell takes it apart; up to a pipe, a redirection or a comment.
fn words(line: &str) -> Vec<OsString> {
    let (mut words, mut word, mut quote, mut begun) = (Vec::new(), String::new(), None, false);
    for c in line.chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '\'' | '"') => (quote, begun) = (Some(c), true),
            (None, '|' | '>' | '#' | ';' | '&') if !begun => break,
            (None, c) if c.is_whitespace() => {
                if begun {
                    words.push(OsString::from(std::mem::take(&mut word)));
                }
                begun = false;
            }
            (_, c) => {
                word.push(c);
                begun = true;
            }
        }
    }
    if begun {
        words.push(word.into());
    }
    words
}

#[test]
fn every_command_in_the_documents_can_be_typed() {
    let mut typed = 0;
    for page in pages() {
        let text = read(&page);
        let blocks = blocks(&page)
            .into_iter()
            .filter(|(kind, _)| kind == "sh")
            .flat_map(|(_, body)| body.replace("\\\n", " ").lines().map(|line| line.trim().to_owned()).collect::<Vec<_>>());
        let prose: String = text.split("\n```").step_by(2).collect();
        let inline = prose.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
        for line in blocks.chain(inline).filter(|line| line.starts_with("paypoll ")) {
            // What stands for anything, in the form that it must have.
            let line = line.replace("DURATION", "1h").replace("[COMMAND]", "run").replace("help COMMAND", "help run");
            let words = words(&line);
            // A command's name alone names the command.
            if words.len() > 2
                && let Err(error) = Cli::read(words)
            {
                assert_eq!(error.exit_code(), 0, "{page}: {line}\n{error}");
            }
            typed += 1;
        }
    }
    assert!(typed > 60, "{typed}");
}

#[test]
fn the_dashboard_is_json() {
    let dashboard: serde_json::Value = serde_json::from_str(&read("deploy/grafana.json")).unwrap();
    assert!(dashboard["panels"].as_array().is_some_and(|panels| panels.len() > 10));
}

/// The fenced blocks of a page in their order: what stands behind the fence, and what stands within.
fn blocks(page: &str) -> Vec<(String, String)> {
    let text = read(page);
    let mut parts = text.split("\n```").skip(1);
    let mut blocks = Vec::new();
    while let Some(block) = parts.next() {
        let (kind, body) = block.split_once('\n').unwrap();
        blocks.push((kind.to_owned(), format!("{body}\n")));
        parts.next();
    }
    blocks
}

/// What `paypoll plan` prints for a configuration.
fn timetable(configuration: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_paypoll"));
    command.env_clear().args(["plan", "--config", "/dev/stdin"]).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut paypoll = command.spawn().unwrap();
    paypoll.stdin.take().unwrap().write_all(configuration.as_bytes()).unwrap();
    String::from_utf8(paypoll.wait_with_output().unwrap().stdout).unwrap()
}

#[test]
fn every_plan_on_its_page_has_the_timetable_that_stands_below_it() {
    let blocks = blocks("docs/plans.md");
    let mut examples = 0;
    for pair in blocks.windows(2) {
        let ((kind, configuration), (_, shown)) = (&pair[0], &pair[1]);
        let Some(asked) = kind.strip_prefix("toml plan=") else { continue };
        let arguments: Vec<&str> = match asked.split_once(" for=") {
            Some((provider, horizon)) => vec![provider, "--for", horizon],
            None => vec![asked],
        };
        assert_eq!(timetable(configuration, &arguments), *shown, "{configuration}");
        examples += 1;
    }
    assert!(examples >= 10, "{examples}");
}

#[test]
fn the_plans_page_ends_with_the_default_of_every_provider() {
    let page = read("docs/plans.md");
    let configured = read("config/default.toml");
    let defaults = page.split("\n## The defaults\n").nth(1).unwrap();
    for descriptor in &REGISTRY {
        let section = |text: &str| text.split(&format!("\n[providers.{}]\n", descriptor.name)).nth(1).unwrap().to_owned();
        let schedule = |text: &str| text.lines().find(|line| line.starts_with("schedule = ")).unwrap().to_owned();
        assert_eq!(schedule(&section(defaults)), schedule(&section(&configured)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_recipes_for_a_payments_table_of_ones_own_do_what_they_say() {
    let database = database().await;
    let mut connection = PgConnection::connect(&database.url).await.unwrap();
    let blocks: Vec<String> =
        blocks("docs/recipes.md").into_iter().filter(|(kind, _)| kind == "sql test").map(|(_, sql)| sql).collect();
    for statements in &blocks {
        let result = sqlx::raw_sql(AssertSqlSafe(statements.to_owned())).execute(&mut connection).await;
        assert!(result.is_ok(), "{statements}\n{result:?}");
    }
    let rows: i64 = sqlx::query_scalar("select count(*) from paypoll.transactions").fetch_one(&mut connection).await.unwrap();
    assert_eq!(rows, 101, "the old ones and the new one, and not what is paid in cash");
    let settled = "select paypoll.settle('khalti', 'default', 'NEW-1', 'succeeded')";
    sqlx::query(settled).execute(&mut connection).await.unwrap();
    let written: i32 = sqlx::query_scalar("select payments_from_paypoll()").fetch_one(&mut connection).await.unwrap();
    let status: String =
        sqlx::query_scalar("select status from payments where psp_ref = 'NEW-1'").fetch_one(&mut connection).await.unwrap();
    assert_eq!((written, status.as_str()), (1, "paid"));
}

/// The rows of the tables in a page's section, without heads.
fn rows(page: &str, heading: &str) -> Vec<Vec<String>> {
    let text = read(page);
    let section = text.split(&format!("\n## {heading}\n")).nth(1).unwrap_or_else(|| panic!("{page} has no section {heading}"));
    let lines = section.split("\n## ").next().unwrap().lines().filter(|line| line.starts_with("| `"));
    let cells = |line: &str| line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect();
    lines.map(cells).collect()
}

/// The first cells, without their quotes.
fn names(rows: &[Vec<String>]) -> Vec<String> {
    rows.iter().map(|row| row[0].trim_matches('`').to_owned()).collect()
}

/// A page with each paragraph in one line.
fn unwrapped(page: &str) -> String {
    let mut text = String::new();
    for line in page.lines() {
        let goes_on = !line.is_empty() && !line.starts_with(['|', '#', '-', '`']) && !text.is_empty() && !text.ends_with("\n\n");
        if goes_on {
            text.pop();
            text.push(' ');
        }
        text.push_str(line);
        text.push('\n');
    }
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn the_reference_has_every_table_column_and_function_in_the_databases_own_words() {
    let database = database().await;
    let page = unwrapped(&read("docs/reference.md"));
    let tables: Vec<(String, String)> = sqlx::query_as(
        "select c.relname::text, coalesce(obj_description(c.oid, 'pg_class'), '') from pg_class c
          where c.relnamespace = 'paypoll'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition and c.relname <> 'migrations'
          order by c.relname",
    )
    .fetch_all(&database.pool)
    .await
    .unwrap();
    for (table, comment) in &tables {
        let columns: Vec<(String, String, bool, String)> = sqlx::query_as(
            "select a.attname::text, format_type(a.atttypid, a.atttypmod), a.attnotnull, coalesce(col_description(a.attrelid, a.attnum), '')
               from pg_attribute a where a.attrelid = to_regclass('paypoll.' || $1) and a.attnum > 0 and not a.attisdropped order by a.attnum",
        )
        .bind(table)
        .fetch_all(&database.pool)
        .await
        .unwrap();
        let mut expected = format!("### `paypoll.{table}`\n\n{comment}\n\n| column | type | is |\n|---|---|---|\n");
        for (name, kind, is_required, comment) in columns {
            expected += &format!("| `{name}` | {kind}{} | {comment} |\n", if is_required { "" } else { ", null" });
        }
        assert!(page.contains(&expected), "docs/reference.md must have:\n\n{expected}");
    }
    assert_eq!(page.matches("### `paypoll.").count(), tables.len());
    let functions: Vec<(String, String)> = sqlx::query_as(
        "select proname || '(' || pg_get_function_identity_arguments(oid) || ')', coalesce(obj_description(oid, 'pg_proc'), '')
           from pg_proc where pronamespace = 'paypoll'::regnamespace and prorettype <> 'trigger'::regtype order by 1",
    )
    .fetch_all(&database.pool)
    .await
    .unwrap();
    let expected: Vec<Vec<String>> = functions.into_iter().map(|(name, comment)| vec![format!("`{name}`"), comment]).collect();
    let table: String = expected.iter().map(|row| format!("| {} | {} |\n", row[0], row[1])).collect();
    assert_eq!(rows("docs/reference.md", "Functions"), expected, "docs/reference.md must have:\n\n{table}");
}

#[test]
fn the_reference_has_every_state_outcome_and_reason() {
    let states: Vec<&str> = State::ALL.into_iter().map(State::as_str).collect();
    assert_eq!(names(&rows("docs/reference.md", "States")), states);
    let documented: BTreeSet<String> = names(&rows("docs/reference.md", "Outcomes")).into_iter().collect();
    assert_eq!(documented, Outcome::NAMES.into_iter().map(str::to_owned).collect());
    let reasons = rows("docs/reference.md", "Reasons");
    let own: Vec<(String, String)> = REASONS.iter().map(|reason| (reason.name.to_owned(), reason.means.to_owned())).collect();
    assert_eq!(names(&reasons).into_iter().zip(reasons.iter().map(|row| row[1].clone())).collect::<Vec<_>>(), own);
}

#[test]
fn the_reference_has_every_metric() {
    let documented: BTreeSet<String> = names(&rows("docs/reference.md", "Metrics")).into_iter().collect();
    assert_eq!(documented, metrics());
}

#[test]
fn the_index_leads_to_every_document_and_so_does_the_readme() {
    let (index, readme) = (read("docs/README.md"), read("README.md"));
    let pages: Vec<String> = pages().iter().filter_map(|page| page.strip_prefix("docs/")).map(str::to_owned).collect();
    for page in pages.iter().filter(|page| *page != "README.md") {
        assert!(index.contains(&format!("]({page}")), "docs/README.md does not name {page}");
        // A page of a folder is found through the index.
        assert!(page.contains('/') || readme.contains(&format!("](docs/{page})")), "README.md does not name docs/{page}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sql_of_the_integration_page_does_what_the_page_says() {
    let database = database().await;
    let mut connection = PgConnection::connect(&database.url).await.unwrap();
    let mut run = async |statements: &str| {
        let result = sqlx::raw_sql(AssertSqlSafe(statements.to_owned())).execute(&mut connection).await;
        assert!(result.is_ok(), "{statements}\n{result:?}");
    };
    let blocks: Vec<String> =
        blocks("docs/integrate.md").into_iter().filter(|(kind, _)| kind == "sql test").map(|(_, sql)| sql).collect();
    for statements in &blocks {
        run(statements).await;
    }
    let rows: i64 = sqlx::query_scalar("select count(*) from paypoll.transactions").fetch_one(&database.pool).await.unwrap();
    assert_eq!(rows, 1004, "what was inserted twice is there once");
    let feed = blocks.iter().find(|statements| statements.contains("transitions_since")).unwrap();
    run("select paypoll.settle('dusupay', 'kenya', 'ORDER-1001', 'succeeded')").await;
    run(feed).await;
    let status: String = sqlx::query_scalar("select status from orders").fetch_one(&database.pool).await.unwrap();
    assert_eq!(status, "succeeded");
    let verdicts = "select array_agg(to_state order by id) from paypoll.transitions where source = 'external'";
    let verdicts: Vec<String> = sqlx::query_scalar(verdicts).fetch_one(&database.pool).await.unwrap();
    assert_eq!(verdicts, ["failed", "succeeded", "succeeded"], "a verdict that comes twice is written once");
}

/// The program of a language on the integration page that handles DusuPay's callbacks.
fn callback_handler(language: &str) -> String {
    let kind = format!("{language} dusupay-callback");
    blocks("docs/integrate.md").into_iter().find(|(found, _)| *found == kind).map(|(_, program)| program).unwrap()
}

const CALLBACK: &str = r#"{"event":"transaction.completed","merchant_reference":"MCTREFT2WMNWZ23SBN6Y","internal_reference":"DUSUPAYRMGRXNNYBWATKJ","transaction_type":"COLLECTION","transaction_status":"COMPLETED","request_amount":2000}"#;
const CALLBACK_SIGNED: &str = "transaction.completed:MCTREFT2WMNWZ23SBN6Y:DUSUPAYRMGRXNNYBWATKJ:COLLECTION:COMPLETED";
const SIGNING_KEY: &str = "SGNKYUEMYFDEHRWGPEUG";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What both handlers are tried with: the callback, its two signatures in hex, and the public key.
fn callback_trial() -> serde_json::Value {
    use aws_lc_rs::signature::{KeyPair, RSA_PKCS1_SHA512, RsaKeyPair};
    use rustls_pki_types::{PrivatePkcs8KeyDer, pem::PemObject};
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, SIGNING_KEY.as_bytes());
    let mac = hex(aws_lc_rs::hmac::sign(&key, CALLBACK_SIGNED.as_bytes()).as_ref());
    let der = PrivatePkcs8KeyDer::from_pem_slice(include_bytes!("../fixtures/ayoconnect/keys/pkcs8.pem")).unwrap();
    let pair = RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()).unwrap();
    let mut signature = vec![0; pair.public_modulus_len()];
    let random = aws_lc_rs::rand::SystemRandom::new();
    pair.sign(&RSA_PKCS1_SHA512, &random, CALLBACK_SIGNED.as_bytes(), &mut signature).unwrap();
    assert!(!pair.public_key().as_ref().is_empty());
    let public = include_str!("../fixtures/ayoconnect/keys/public.pem");
    serde_json::json!({ "body": CALLBACK, "key": SIGNING_KEY, "mac": mac, "rsa": hex(&signature), "public": public })
}

const PYTHON_TRIAL: &str = r#"
class Db:
    asked = []
    def execute(self, sql, values):
        self.asked.append([sql, list(values)])

import sys
trial, db = json.loads(sys.argv[1]), Db()
body, key = trial["body"], trial["key"]
good = {"hmac-signature": "t=1763760000,s=" + trial["mac"]}
assert callback(db, "kenya", good, body, signing_key=key) == 200
assert len(db.asked) == 1
for field in SIGNED:
    other = dict(json.loads(body), **{field: "x"})
    assert callback(db, "kenya", good, json.dumps(other), signing_key=key) == 401, field
assert callback(db, "kenya", good, body, signing_key="another") == 401
for headers in ({"hmac-signature": "t=1"}, {"hmac-signature": "s="}, {"hmac-signature": "nonsense"}, {"hmac-signature": "s=\u00e9"}):
    assert callback(db, "kenya", headers, body, signing_key=key) == 401, headers
assert callback(db, "kenya", {}, body, signing_key=key) == 400
for odd in ("", "no json", "[]", "{}", "null"):
    assert callback(db, "kenya", good, odd, signing_key=key) == 400, odd
try:
    import cryptography
    rsa = {"rsa-signature": base64.b64encode(bytes.fromhex(trial["rsa"])).decode()}
    assert callback(db, "kenya", rsa, body, public_key_pem=trial["public"]) == 200
    other = dict(json.loads(body), transaction_status="FAILED")
    assert callback(db, "kenya", rsa, json.dumps(other), public_key_pem=trial["public"]) == 401
    assert callback(db, "kenya", {"rsa-signature": "AAAA"}, body, public_key_pem=trial["public"]) == 401
    db.asked.pop()
except ImportError:
    pass
assert len(db.asked) == 1
print(json.dumps(db.asked[0]))
"#;

const NODE_TRIAL: &str = r#"
(async () => {
  const assert = require("node:assert");
  const trial = JSON.parse(process.argv.at(-1));
  const asked = [];
  const db = { query: async (sql, values) => { asked.push([sql, values]); } };
  const { body, key: signingKey, public: publicKeyPem } = trial;
  const good = { "hmac-signature": "t=1763760000,s=" + trial.mac };
  assert.equal(await callback(db, "kenya", good, body, { signingKey }), 200);
  for (const field of SIGNED) {
    const other = JSON.stringify({ ...JSON.parse(body), [field]: "x" });
    assert.equal(await callback(db, "kenya", good, other, { signingKey }), 401, field);
  }
  assert.equal(await callback(db, "kenya", good, body, { signingKey: "another" }), 401);
  for (const header of ["t=1", "s=", "nonsense", "s=\u00e9"])
    assert.equal(await callback(db, "kenya", { "hmac-signature": header }, body, { signingKey }), 401, header);
  assert.equal(await callback(db, "kenya", {}, body, { signingKey }), 400);
  for (const odd of ["", "no json", "[]", "{}", "null"])
    assert.equal(await callback(db, "kenya", good, odd, { signingKey }), 400, odd);
  const rsa = { "rsa-signature": Buffer.from(trial.rsa, "hex").toString("base64") };
  assert.equal(await callback(db, "kenya", rsa, body, { publicKeyPem }), 200);
  const other = JSON.stringify({ ...JSON.parse(body), transaction_status: "FAILED" });
  assert.equal(await callback(db, "kenya", rsa, other, { publicKeyPem }), 401);
  assert.equal(await callback(db, "kenya", { "rsa-signature": "AAAA" }, body, { publicKeyPem }), 401);
  assert.equal(asked.length, 2);
  console.log(JSON.stringify(asked[0]));
})().catch((error) => { console.error(error); process.exit(1); });
"#;

#[tokio::test(flavor = "multi_thread")]
async fn the_callback_handlers_believe_a_signature_and_nothing_that_it_does_not_cover() {
    let database = database().await;
    let trial = callback_trial().to_string();
    for (language, command, option, rest) in [("python", "python3", "-c", PYTHON_TRIAL), ("js", "node", "-e", NODE_TRIAL)] {
        if Command::new(command).arg("--version").output().is_err() {
            println!("{command} is not here: its handler was not run");
            continue;
        }
        let program = format!("{}\n{rest}", callback_handler(language));
        let mut run = Command::new(command);
        run.arg(option).arg(program);
        if language == "js" {
            run.arg("--");
        }
        let done = run.arg(&trial).output().unwrap();
        assert!(done.status.success(), "{language}: {}", String::from_utf8_lossy(&done.stderr));
        let (sql, values): (String, Vec<String>) = serde_json::from_slice(&done.stdout).unwrap();
        let sql = sql.replacen("%s", "$1", 1).replacen("%s", "$2", 1);
        let later = "insert into paypoll.transactions (provider, account, reference, initiated_at)
                     values ('dusupay', 'kenya', 'MCTREFT2WMNWZ23SBN6Y', now()) on conflict do nothing";
        sqlx::query(later).execute(&database.pool).await.unwrap();
        sqlx::query("update paypoll.transactions set next_poll_at = now() + interval '4 minutes', fence = fence + 1")
            .execute(&database.pool)
            .await
            .unwrap();
        let mut asked = sqlx::query(AssertSqlSafe(sql));
        for value in &values {
            asked = asked.bind(value);
        }
        assert_eq!(asked.execute(&database.pool).await.unwrap().rows_affected(), 1, "{language}");
        let due: bool = sqlx::query_scalar("select next_poll_at <= clock_timestamp() from paypoll.transactions")
            .fetch_one(&database.pool)
            .await
            .unwrap();
        assert!(due, "{language}: it is asked about now");
    }
}

#[test]
fn every_promise_of_the_security_page_names_a_test_that_exists() {
    let page = read("SECURITY.md");
    let named: Vec<(&str, &str)> = page
        .split('`')
        .filter_map(|code| code.split_once(".rs::"))
        .filter(|(file, name)| !file.is_empty() && !name.contains(' '))
        .collect();
    assert!(named.len() > 20, "{named:?}");
    for (file, name) in named {
        let source = read(&format!("tests/it/{file}.rs"));
        assert!(source.contains(&format!("fn {name}(")), "tests/it/{file}.rs has no test {name}");
    }
}
