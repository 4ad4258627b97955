-- What the daemons know of each other.

-- One row for every live replica. Its row is its lease: whoever finds it older than the lease deletes it, and with it the right to
-- write. Ids only rise and become visible in their order (registration locks the table), so "no longer here" means dead for good.
create table paypoll.replicas (
    id           bigint      generated always as identity primary key,
    lease        interval    not null,
    started_at   timestamptz not null default clock_timestamp(),
    heartbeat_at timestamptz not null default clock_timestamp(),
    complied     bigint      not null,                  -- the newest replica whose share of the requests in flight it leaves free
    accounts     jsonb       not null default '[]',     -- what it serves: [["provider", "account"], …]
    host         text        not null default ''
) with (fillfactor = 50);

-- One row for every provider account: the budget and the circuit that all replicas share.
create table paypoll.accounts (
    provider      text        not null,
    account       text        not null,
    arrival_at    timestamptz not null default to_timestamp(0), -- when the next request would be due if they came at the account's rate
    held_until    timestamptz,                          -- null: the provider asked for no pause (Retry-After)
    slowdown      real        not null default 1,       -- how many times slower than configured since slowed_at; wears off
    slowed_at     timestamptz,                          -- null: never slowed
    circuit_since timestamptz,                          -- null: closed
    circuit_reason text,                                -- null: closed
    probe_at      timestamptz,                          -- null: closed; else when the next probe may be sent
    primary key (provider, account),
    constraint accounts_times_in_range check (
        least(arrival_at, held_until, slowed_at, circuit_since, probe_at) >= timestamptz '1970-01-01 00:00Z'
        and greatest(arrival_at, held_until, slowed_at, circuit_since, probe_at) < timestamptz '10000-01-01 00:00Z'),
    constraint accounts_slowdown_in_range check (slowdown between 1 and 1000000)
) with (fillfactor = 50);
