-- How many transactions each replica holds: one that holds more than its share leaves what it has polled to the others.
alter table paypoll.replicas add column held bigint;   -- null: a daemon of the version before
comment on column paypoll.replicas.held is 'Transactions that it holds in memory, as of its last heartbeat; null: a daemon of the version before.';
