-- no-transaction
create index concurrently if not exists transactions_backlog on paypoll.transactions (provider, account, next_poll_at)
 where next_poll_at is not null and (reopened_at is not null or created_at - initiated_at >= interval '10 minutes');
