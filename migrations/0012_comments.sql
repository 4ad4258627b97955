-- What every table, column and function is, for whoever meets them in the database: `\d+ paypoll.transactions`.

comment on schema paypoll is 'Payments whose fate a provider is asked about, by the paypoll daemon.';

comment on table paypoll.transactions is 'The payments: inserted and corrected by their feeder, asked about and settled by the daemon.';
comment on column paypoll.transactions.id is 'A UUID that rises with time (version 7).';
comment on column paypoll.transactions.provider is 'Whom to ask: a name in paypoll.providers. Never changes.';
comment on column paypoll.transactions.account is 'Whose credentials to ask with: a merchant account of the configuration. At most 128 characters.';
comment on column paypoll.transactions.reference is 'The key that the provider looks up. At most 512 characters; unique within provider and account.';
comment on column paypoll.transactions.params is 'What the lookup needs beside the reference, under the provider''s own names. At most 64 KiB; secrets in it are erased once final.';
comment on column paypoll.transactions.amount is 'What the feeder expects, at most 18 digits before and 10 behind the point; a success over another amount is not believed. Null: any.';
comment on column paypoll.transactions.currency is 'What the feeder expects: three letters, kept as capitals. Null: any.';
comment on column paypoll.transactions.initiated_at is 'When the payment began, by the feeder''s clock: the plan counts from it.';
comment on column paypoll.transactions.state is 'pending, action_required, succeeded, failed, cancelled, refunded (final), unresolved or invalid (parked).';
comment on column paypoll.transactions.provider_state is 'The provider''s own word; null: none yet. At most 256 characters.';
comment on column paypoll.transactions.reason is 'Why it stands there; null: nothing to explain. At most 2,000 characters.';
comment on column paypoll.transactions.details is 'The last meaningful answer, redacted; null: none yet.';
comment on column paypoll.transactions.attempts is 'Polls sent; may lag behind the journal by up to a minute while polled.';
comment on column paypoll.transactions.failures is 'Polls in a row without a usable answer.';
comment on column paypoll.transactions.last_polled_at is 'When the last poll was sent, under this row or under one that had its reference before; null: never.';
comment on column paypoll.transactions.next_poll_at is 'When it is looked at next; null exactly when final or parked.';
comment on column paypoll.transactions.finalized_at is 'When it became final; null unless it is.';
comment on column paypoll.transactions.created_at is 'When the row was inserted.';
comment on column paypoll.transactions.updated_at is 'When the row was last written.';
comment on column paypoll.transactions.fence is 'The daemon''s: raised by every claim and every change of state; an older one may not write.';
comment on column paypoll.transactions.owner is 'The daemon''s: the replica that holds it or has not let go of it yet; 0: let go of, the journal knows more; null: nobody.';
comment on column paypoll.transactions.not_found is 'The daemon''s: answers in a row that said "not found".';
comment on column paypoll.transactions.reopened_at is 'When an operator last reopened it; null: never.';
comment on column paypoll.transactions.action_at is 'The daemon''s: when it last came into action_required or left it; null: never.';
comment on column paypoll.transactions.not_before is 'The daemon''s: no poll before this, because an owner that died may have sent one that nobody recorded; null: no such.';
comment on column paypoll.transactions.opened_at is 'The daemon''s: the first poll of this window; null: none yet.';
comment on column paypoll.transactions.phase is 'The daemon''s: the plan''s phase that the last poll fell into.';
comment on column paypoll.transactions.phase_since is 'The daemon''s: when that phase began; null: with the window.';
comment on column paypoll.transactions.gaps is 'The daemon''s: how many of the phase''s gaps are over.';

comment on table paypoll.transitions is 'Every change of state, append-only; the feed that paypoll.transitions_since reads.';
comment on column paypoll.transitions.id is 'Rises; the feed''s cursor.';
comment on column paypoll.transitions.transaction_id is 'The transaction; it may be deleted since.';
comment on column paypoll.transitions.from_state is 'The state before.';
comment on column paypoll.transitions.to_state is 'The state after.';
comment on column paypoll.transitions.provider_state is 'The provider''s own word at that time; null: none.';
comment on column paypoll.transitions.reason is 'Why; null: nothing to explain.';
comment on column paypoll.transitions.source is 'poll: an answer; deadline: time ran out; external: another program; operator: a person.';
comment on column paypoll.transitions.evidence is 'HTTP status, redacted and truncated body, when asked and answered; null: no answer stands behind it. At most 64 KiB from settle.';
comment on column paypoll.transitions.at is 'When the change was written.';

comment on table paypoll.polls is 'The journal: one row for every poll that was sent. One partition a day (UTC), pruned by journal.retention.';
comment on column paypoll.polls.transaction_id is 'The transaction that was asked about.';
comment on column paypoll.polls.provider is 'The provider.';
comment on column paypoll.polls.account is 'The account.';
comment on column paypoll.polls.due_at is 'When the poll was due.';
comment on column paypoll.polls.sent_at is 'When it was sent.';
comment on column paypoll.polls.latency_ms is 'How long the answer took; null: nothing came back.';
comment on column paypoll.polls.http_status is 'The answer''s status; null: nothing came back.';
comment on column paypoll.polls.outcome is 'What the answer meant.';
comment on column paypoll.polls.error is 'What was wrong with it, scrubbed of secrets; null: nothing.';

comment on table paypoll.replicas is 'One row for every live daemon: its lease.';
comment on column paypoll.replicas.id is 'Given anew at every start and after every lost lease; never used twice.';
comment on column paypoll.replicas.lease is 'A row that was not renewed for so long is deleted, and with it the right to write.';
comment on column paypoll.replicas.started_at is 'When it registered.';
comment on column paypoll.replicas.heartbeat_at is 'When it last renewed its lease.';
comment on column paypoll.replicas.complied is 'The newest replica whose share of the requests in flight it leaves free.';
comment on column paypoll.replicas.accounts is 'What it serves: [["provider", "account"], ...].';
comment on column paypoll.replicas.host is 'The host that it runs on.';

comment on table paypoll.accounts is 'One row for every provider account: budget, circuit and pauses, shared by all replicas.';
comment on column paypoll.accounts.provider is 'The provider.';
comment on column paypoll.accounts.account is 'The account.';
comment on column paypoll.accounts.arrival_at is 'When the next request would be due if they came at the account''s rate.';
comment on column paypoll.accounts.held_until is 'The provider asked for a pause until then (Retry-After); null: it did not.';
comment on column paypoll.accounts.slowdown is 'How many times slower than configured since slowed_at; wears off.';
comment on column paypoll.accounts.slowed_at is 'When the provider last asked to come slower; null: never.';
comment on column paypoll.accounts.circuit_since is 'Since when the circuit is open; null: it is closed.';
comment on column paypoll.accounts.circuit_reason is 'Why it is open; null: it is closed.';
comment on column paypoll.accounts.probe_at is 'When the next probe may be sent; null: the circuit is closed.';

comment on function paypoll.new_id() is 'A UUID that rises with time (RFC 9562, version 7).';
comment on function paypoll.is_final(text) is 'Whether a transaction in that state is final: succeeded, failed, cancelled, refunded.';
comment on function paypoll.without_secrets(text, jsonb) is 'The params of a provider''s transaction without its secrets.';
comment on function paypoll.shown_params(uuid) is 'A transaction''s params as people may see them: secrets redacted.';
comment on function paypoll.admit() is 'Trigger: what a new transaction must be like.';
comment on function paypoll.guard_state() is 'Trigger: what follows from a change of state, whoever makes it.';
comment on function paypoll.guard_correction() is 'Trigger: what a corrected transaction must be like, and what follows from the correction.';
comment on function paypoll.refuse_change() is 'Trigger: history is only appended to.';
comment on function paypoll.notify_transitions() is 'Trigger: NOTIFY paypoll_transitions, unless paypoll.notify is off.';
comment on function paypoll.settle(text, text, text, text, text, text, jsonb) is
    'Hands over a callback''s verdict: provider, account, reference, state, provider_state, reason, evidence. False where the transaction already stood there.';
comment on function paypoll.override_state(uuid, text, text) is 'Changes even a final state, with a reason, as operator in the history.';
comment on function paypoll.make_journal(date, date) is 'Makes the journal''s partitions for the days from the first to the last.';
comment on function paypoll.prune_journal(date) is 'Drops the journal''s partitions of the days before that one; returns how many.';

-- Absent where the schema was not made by `paypoll migrate`.
do $$
begin
    if to_regclass('paypoll.migrations') is not null then
        comment on table paypoll.migrations is 'Which changes of the schema were applied, by `paypoll migrate`.';
        comment on column paypoll.migrations.version is 'The change''s number.';
        comment on column paypoll.migrations.description is 'What it is about.';
        comment on column paypoll.migrations.installed_on is 'When it was applied.';
        comment on column paypoll.migrations.success is 'Whether it was applied to its end.';
        comment on column paypoll.migrations.checksum is 'SHA-384 of its text.';
        comment on column paypoll.migrations.execution_time is 'How long it took, in nanoseconds.';
    end if;
end
$$;
