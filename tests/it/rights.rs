//! The roles of `deploy/roles.sql`: each can do its work, and nothing else.

use crate::support::database;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

const ROLES: &str = include_str!("../../deploy/roles.sql");

/// PostgreSQL's code for a right that is not there.
const INSUFFICIENT_PRIVILEGE: &str = "42501";

/// What every case finds: one pending transaction, and a final one with its transition.
const ROWS: &str = "
    insert into paypoll.transactions (provider, reference, params) values ('dapi', 'pending', '{\"accessToken\": \"s\", \"x\": 1}');
    insert into paypoll.transactions (provider, reference) values ('khalti', 'final');
    select paypoll.settle('khalti', 'default', 'final', 'succeeded');
    insert into paypoll.accounts (provider, account) values ('khalti', 'default');";

const FEEDER: &str = "paypoll_feeder";
const DAEMON: &str = "paypoll_daemon";
const READER: &str = "paypoll_reader";

/// What a role's work needs.
const ALLOWED: &[(&str, &str)] = &[
    (
        FEEDER,
        "insert into paypoll.transactions (provider, account, reference, params, amount, currency, initiated_at) \
         values ('khalti', 'a', 'new', '{}', 1, 'NPR', now()) on conflict (provider, account, reference) do nothing",
    ),
    (FEEDER, "insert into paypoll.transactions (provider, reference) values ('khalti', 'new') returning id, state"),
    (FEEDER, "update paypoll.transactions set params = '{\"accessToken\": \"t\"}', amount = 2 where reference = 'pending'"),
    (
        FEEDER,
        "update paypoll.transactions set state = 'failed', provider_state = 'FAILED', reason = 'by callback' where \
         reference = 'pending'",
    ),
    (FEEDER, "select paypoll.settle('dapi', 'default', 'pending', 'succeeded', 'done', null, '{}')"),
    (FEEDER, "select state, reason, action from paypoll.transactions where provider = 'khalti' and reference = 'final'"),
    (FEEDER, "select id, transaction_id, to_state from paypoll.transitions_since(0)"),
    (FEEDER, "listen paypoll_transitions"),
    (DAEMON, "select params from paypoll.transactions where next_poll_at <= now() for no key update skip locked"),
    (
        DAEMON,
        "update paypoll.transactions set fence = fence + 1, owner = 1, next_poll_at = now() where reference = \
         'pending'",
    ),
    (
        DAEMON,
        "with written as (update paypoll.transactions set fence = fence + 1, state = 'succeeded', next_poll_at = null \
         where reference = 'pending' returning id) insert into paypoll.transitions (transaction_id, from_state, \
         to_state, source) select id, 'pending', 'succeeded', 'poll' from written",
    ),
    (
        DAEMON,
        "insert into paypoll.polls (transaction_id, provider, account, due_at, sent_at, outcome) select id, provider, \
         account, now(), now(), 'pending' from paypoll.transactions",
    ),
    (DAEMON, "lock table paypoll.replicas in share row exclusive mode"),
    (DAEMON, "insert into paypoll.replicas (lease, complied) values ('15 s', 0)"),
    (DAEMON, "delete from paypoll.replicas"),
    (DAEMON, "insert into paypoll.accounts (provider, account) values ('khalti', 'a') on conflict do nothing"),
    (DAEMON, "update paypoll.accounts set held_until = now()"),
    (DAEMON, "select paypoll.make_journal(current_date + 30, current_date + 31)"),
    (DAEMON, "select paypoll.prune_journal(current_date - 1)"),
    (DAEMON, "select version from paypoll.migrations"),
    (DAEMON, "select paypoll.pause('khalti', 'default', 'x'), paypoll.resume('khalti', 'default')"),
    (DAEMON, "select paypoll.register_provider('paystack', '{}', repeat('0', 64), 1), name from paypoll.providers"),
    (FEEDER, "select name from paypoll.providers"),
    (READER, "select provider, account, count(*) from paypoll.transactions where state = 'pending' group by 1, 2"),
    (READER, "select * from paypoll.transitions"),
    (READER, "select * from paypoll.polls"),
    (READER, "select * from paypoll.replicas, paypoll.accounts, paypoll.migrations"),
    (READER, "select paypoll.shown_params(id) from paypoll.transactions"),
];

/// What would be harm.
const FORBIDDEN: &[(&str, &str)] = &[
    (FEEDER, "select params from paypoll.transactions"),
    (FEEDER, "update paypoll.transactions set state = 'failed', fence = fence + 1 where reference = 'final'"),
    (FEEDER, "update paypoll.transactions set owner = null"),
    (FEEDER, "update paypoll.transactions set attempts = 0"),
    (FEEDER, "delete from paypoll.transactions"),
    (
        FEEDER,
        "insert into paypoll.transitions (transaction_id, from_state, to_state, source) select id, 'pending', \
         'failed', 'poll' from paypoll.transactions",
    ),
    (FEEDER, "select paypoll.override_state(id, 'failed', 'x') from paypoll.transactions"),
    (FEEDER, "select paypoll.shown_params(id) from paypoll.transactions"),
    (FEEDER, "select * from paypoll.polls"),
    (FEEDER, "select * from paypoll.accounts"),
    (FEEDER, "delete from paypoll.replicas"),
    (FEEDER, "select paypoll.prune_journal(current_date)"),
    (FEEDER, "select paypoll.pause('khalti', 'default', 'x')"),
    (FEEDER, "select paypoll.register_provider('paystack', '{}', repeat('0', 64), 1)"),
    (FEEDER, "select paypoll.without_secrets('dapi', '{}')"),
    (
        FEEDER,
        "create temporary table mine (id uuid, state text); create trigger forge before update on mine for each row \
         execute function paypoll.guard_state()",
    ),
    (DAEMON, "insert into paypoll.transactions (provider, reference) values ('khalti', 'new')"),
    (DAEMON, "delete from paypoll.transactions"),
    (DAEMON, "update paypoll.transactions set reference = 'other'"),
    (DAEMON, "update paypoll.transactions set params = '{}', amount = 1"),
    (DAEMON, "update paypoll.transitions set to_state = 'failed'"),
    (DAEMON, "delete from paypoll.transitions"),
    (DAEMON, "truncate paypoll.transitions"),
    (DAEMON, "update paypoll.polls set sent_at = now()"),
    (DAEMON, "delete from paypoll.polls"),
    (DAEMON, "drop table paypoll.polls"),
    (DAEMON, "update paypoll.providers set secret_params = '{}'"),
    (DAEMON, "create table paypoll.mine ()"),
    (DAEMON, "select paypoll.override_state(id, 'failed', 'x') from paypoll.transactions"),
    (DAEMON, "alter table paypoll.transactions disable trigger all"),
    (READER, "select params from paypoll.transactions"),
    (READER, "select * from paypoll.transactions"),
    (READER, "insert into paypoll.transactions (provider, reference) values ('khalti', 'new')"),
    (READER, "update paypoll.transactions set state = 'failed'"),
    (READER, "select paypoll.settle('dapi', 'default', 'pending', 'succeeded')"),
    (READER, "select paypoll.override_state(id, 'failed', 'x') from paypoll.transactions"),
    (READER, "select paypoll.make_journal(current_date, current_date)"),
    (READER, "select paypoll.resume('khalti', 'default')"),
    (READER, "update paypoll.accounts set held_until = 'infinity'"),
];

/// The code of the error, if there is one. Whatever was done is undone.
async fn refusal(connection: &mut PgConnection, role: &str, statements: &str) -> Option<String> {
    let mut tx = connection.begin().await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(format!("set local role {role}"))).execute(&mut *tx).await.unwrap();
    let result = sqlx::raw_sql(AssertSqlSafe(statements.to_owned())).execute(&mut *tx).await;
    tx.rollback().await.unwrap();
    result.err().map(|error| error.as_database_error().and_then(sqlx::error::DatabaseError::code).unwrap_or_default().into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_role_can_do_its_work_and_nothing_else() {
    let database = database().await;
    let mut connection = PgConnection::connect(&database.url).await.unwrap();
    // Twice, because it is run after every migration.
    for statements in [ROLES, ROLES, ROWS] {
        sqlx::raw_sql(AssertSqlSafe(statements.to_owned())).execute(&mut connection).await.unwrap();
    }
    for (role, statements) in ALLOWED {
        assert_eq!(refusal(&mut connection, role, statements).await, None, "{role}: {statements}");
    }
    for (role, statements) in FORBIDDEN {
        let refused = refusal(&mut connection, role, statements).await;
        assert_eq!(refused.as_deref(), Some(INSUFFICIENT_PRIVILEGE), "{role}: {statements}");
    }
}
