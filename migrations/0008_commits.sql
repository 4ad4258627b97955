-- What a process was told is committed, provable on any server that carries the history on.
--
-- A number in a row of its own is raised in the same transaction as what it proves. A commit whose answer got lost is there exactly
-- when the number is; that holds also on a standby that was promoted, where the old server's transaction ids mean others. And a
-- number below the last one that was acknowledged shows that a failover or a restore has cut the history back.

create table paypoll.commits (
    process uuid        not null,                       -- one run of a daemon; no registration, because polls are recorded without one too
    stream  smallint    not null check (stream in (0, 1)), -- 0: records of polls; 1: claims
    number  bigint      not null check (number > 0),
    at      timestamptz not null default clock_timestamp(),
    primary key (process, stream)
) with (fillfactor = 50);

comment on table paypoll.commits is 'The last batch that each running daemon committed: proves a commit whose answer got lost, and reveals commits that a failover lost.';
comment on column paypoll.commits.process is 'One run of a daemon.';
comment on column paypoll.commits.stream is '0: records of polls; 1: claims.';
comment on column paypoll.commits.number is 'Raised by every commit of the stream, in the same transaction.';
comment on column paypoll.commits.at is 'When it was last raised.';

-- A number that a sequence gave out may be given out again after a failover that lost it: a registration is known by its process too.
alter table paypoll.replicas add column process uuid;   -- null: a daemon of version 0.1

comment on column paypoll.replicas.process is 'The run of the daemon that registered; null: version 0.1.';

-- Where a provider allows one request at a time for a key (an access token, say), whoever sends one takes the key first, on whatever
-- replica. A key that nobody gives back is free again after the time that its request may take.
create table paypoll.exclusive_keys (
    key     bytea       not null primary key,           -- SHA-256 of provider, account and key: the key itself may be a secret
    process uuid        not null,                       -- one run of a daemon
    until   timestamptz not null
) with (fillfactor = 50);

comment on table paypoll.exclusive_keys is 'Keys of which one request at a time may be in flight over all replicas, while one is.';
comment on column paypoll.exclusive_keys.key is 'SHA-256 of provider, account and key.';
comment on column paypoll.exclusive_keys.process is 'The run of the daemon that sends.';
comment on column paypoll.exclusive_keys.until is 'When it is free, should nobody give it back.';

-- Which server this is, as the daemons saw it last. Another start means a restart, a failover or a restore: what was committed just before
-- may be gone, and somebody may have been asked about then whom nobody knows of. No poll comes before the provider's floor since that.
create table paypoll.server (
    one        boolean     not null default true primary key check (one),
    started_at timestamptz not null,
    cut_at     timestamptz                              -- null: never another one since the migration
);
insert into paypoll.server (started_at) values (pg_postmaster_start_time());

comment on table paypoll.server is 'The one row that tells which server the daemons saw last.';
comment on column paypoll.server.one is 'There is one row.';
comment on column paypoll.server.started_at is 'When that server was started.';
comment on column paypoll.server.cut_at is 'When a daemon first noticed that it is another one or was restarted; null: never.';
