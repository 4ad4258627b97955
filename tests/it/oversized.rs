//! Rows from before the values had bounds: whatever the table holds, the daemon stays small, polls
//! all others, and names these.

use crate::session::{connect, execute, paypoll, run, text};
use crate::support::{Provider, database, eventually};
use paypoll::simulator;
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::process::Stdio;
use tokio::sync::Mutex;

/// What the daemon promises, in kB.
const MEMORY: u64 = 150 * 1024;

/// The most that a process has had in memory, in kB.
fn peak(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn rows_that_are_far_too_large_are_set_aside_and_read_by_nobody() {
    let provider = Provider::start(1.0);
    let database = database().await;
    let mut connection = connect(&database.url).await;
    // 60 MB each, and hardly anything of it when it is compressed.
    let huge = "repeat('x', 60000000)";
    execute(
        &mut connection,
        &format!(
            "alter table paypoll.transactions disable trigger user;
             insert into paypoll.transactions (provider, reference, params, next_poll_at)
             select 'dapi', 'params-' || n, jsonb_build_object('accessToken', {huge}), now() from generate_series(1, 5) n;
             insert into paypoll.transactions (provider, reference, params, currency, provider_state, reason, details, action, next_poll_at)
             select 'dapi', 'words-' || n, '{{\"accessToken\": \"x\"}}', {huge}, {huge}, {huge}, to_jsonb({huge}), to_jsonb({huge}), now()
               from generate_series(1, 3) n;
             insert into paypoll.transactions (provider, reference, amount, next_poll_at) values
                ('dapi', 'amount', repeat('9', 100000)::numeric, now());
             alter table paypoll.transactions enable trigger user"
        ),
    )
    .await;
    let good = simulator::reference("dapi", 7, "ok");
    sqlx::query("insert into paypoll.transactions (provider, reference, params) values ('dapi', $1, $2)")
        .bind(&good)
        .bind(simulator::params("dapi", 7))
        .execute(&mut connection)
        .await
        .unwrap();
    let mut daemon = paypoll(&database.url, &provider, &["run"]).stdout(Stdio::null()).spawn().unwrap();
    let connection = Mutex::new(connection);
    let done = "select concat_ws(' ', count(*) filter (where state = 'invalid'), count(*) filter (where state = 'succeeded'))
                  from paypoll.transactions";
    eventually("the large ones are set aside, the good one succeeds", || async {
        (text(&mut *connection.lock().await, done).await == "6 1").then_some(())
    })
    .await;
    let most = peak(daemon.id());
    kill_process(Pid::from_child(&daemon), Signal::TERM).unwrap();
    assert!(tokio::task::spawn_blocking(move || daemon.wait()).await.unwrap().unwrap().success());
    assert!(most < MEMORY, "{most} kB");
    let mut connection = connection.into_inner();
    let reasons = "select string_agg(distinct reason, ', ' order by reason) from paypoll.transactions where state = 'invalid'";
    assert_eq!(text(&mut connection, reasons).await, "amount has more than 100 digits, params has more than 65536 bytes");
    for arguments in [&["status"][..], &["status", "--json"], &["audit"]] {
        let (code, out, error) = run(paypoll(&database.url, &provider, arguments)).await;
        assert!(code == 0 && out.len() < 1_000_000, "{arguments:?}: {code}, {} bytes, {error}", out.len());
    }
}
