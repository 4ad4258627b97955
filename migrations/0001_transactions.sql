-- The table that applications feed and read.

-- Ids that rise with time (RFC 9562, version 7), so that new rows land side by side in every index that they are part of.
create function paypoll.new_id() returns uuid language sql volatile parallel safe as $$
    select encode(set_bit(set_bit(
        overlay(uuid_send(gen_random_uuid())
                placing substring(int8send(floor(extract(epoch from clock_timestamp()) * 1000)::bigint) from 3) from 1 for 6),
        52, 1), 53, 1), 'hex')::uuid
$$;

create table paypoll.transactions (
    id             uuid        not null default paypoll.new_id() primary key,
    provider       text        not null,
    account        text        not null default 'default',
    reference      text        not null,
    params         jsonb       not null default '{}',
    amount         numeric,                              -- null: the feeder expects no particular amount
    currency       text,                                 -- null: the feeder expects no particular currency
    initiated_at   timestamptz not null default now(),
    state          text        not null default 'pending'
                   check (state in ('pending', 'action_required', 'succeeded', 'failed', 'cancelled', 'refunded', 'unresolved', 'invalid')),
    provider_state text,                                 -- null: the provider has said no word yet
    reason         text,                                 -- null: nothing to explain
    action         jsonb,                                -- null but in action_required
    details        jsonb,                                -- null: no meaningful answer yet
    attempts       integer     not null default 0 check (attempts >= 0),
    failures       integer     not null default 0 check (failures >= 0),
    last_polled_at timestamptz,                          -- null: never polled
    next_poll_at   timestamptz,                          -- null exactly when final or parked
    finalized_at   timestamptz,                          -- null unless final
    created_at     timestamptz not null default now(),
    updated_at     timestamptz not null default now(),

    -- The daemon's own; nobody else writes them.
    fence          bigint      not null default 0,       -- raised by every claim and every change of state: an older one may not write
    owner          bigint,                               -- the replica that holds it, or has not let go of it yet; 0: let go of, the journal knows more; null: nobody
    not_found      integer     not null default 0,       -- answers in a row that said "not found"
    reopened_at    timestamptz,                          -- null: never reopened by an operator
    action_at      timestamptz,                          -- null: never in action_required
    not_before     timestamptz,                          -- null: nothing; else an owner that died may have sent a poll that nobody recorded: none before this
    opened_at      timestamptz,                          -- null: not polled in this window; else its first poll
    phase          smallint    not null default 0,       -- the plan's phase that the last poll fell into
    phase_since    timestamptz,                          -- null: as opened_at; else when that phase began
    gaps           integer     not null default 0,       -- how many of its gaps are over

    constraint transactions_provider_account_reference_key unique (provider, account, reference),

    -- What no daemon could read or count on would stop it for every other row too.
    constraint transactions_times_in_range check (
        least(initiated_at, last_polled_at, next_poll_at, finalized_at, created_at, updated_at, reopened_at, action_at, not_before,
              opened_at, phase_since) >= timestamptz '1970-01-01 00:00Z'
        and greatest(initiated_at, last_polled_at, next_poll_at, finalized_at, created_at, updated_at, reopened_at, action_at, not_before,
                     opened_at, phase_since) < timestamptz '10000-01-01 00:00Z'),
    constraint transactions_counts_in_range check (least(fence, not_found, phase, gaps) >= 0 and fence < 1::bigint << 62)
) with (
    -- Room for the version that a claim writes beside the row; a claim changes no indexed column.
    fillfactor = 70,
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_insert_scale_factor = 0.2
);

-- No statement asks by what is inside: the planner's samples of it would cost more than all its other columns together.
alter table paypoll.transactions alter column params set statistics 0, alter column action set statistics 0,
                                 alter column details set statistics 0;

-- The claim's index: one account's transactions in the order in which they fall due. Final and parked rows are not in it.
--
-- The claim at 1,000,000 pending rows, 200 of them due, PostgreSQL 15:
--   Nested Loop (actual time=0.1..1.9 rows=200)
--     -> Function Scan on unnest lane (rows=1)
--     -> Limit -> LockRows -> Index Scan using transactions_due on transactions
--          Index Cond: ((provider = lane.provider) AND (account = lane.account) AND (next_poll_at >= …) AND (next_poll_at <= …))
create index transactions_due on paypoll.transactions (provider, account, next_poll_at) where next_poll_at is not null;

-- Parked rows are few and are what operators look for.
create index transactions_parked on paypoll.transactions (provider, account, updated_at) where state in ('unresolved', 'invalid');
create index transactions_waiting_for_action on paypoll.transactions (provider, account) where state = 'action_required';
