-- no-transaction
-- What has ended, account by account, the latest first: lists. A row comes into it once, with its final word; what is still polled is
-- in transactions_due. Made without keeping anybody from writing, which takes longer and a migration of its own.
create index concurrently if not exists transactions_finished
    on paypoll.transactions (state, provider, account, updated_at desc, id desc) where finalized_at is not null;
