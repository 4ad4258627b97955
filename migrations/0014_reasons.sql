-- no-transaction
-- Why: lists by reason, and exact counts of what is parked. Reasons may be long, so their beginning stands for them.
create index concurrently if not exists transactions_by_reason
    on paypoll.transactions (state, provider, account, (coalesce(left(reason, 100), '')), updated_at desc, id desc)
    where state in ('unresolved', 'invalid') or reason is not null;
