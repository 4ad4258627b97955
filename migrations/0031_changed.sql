-- no-transaction
-- What somebody else has changed while a replica owns it: that one looks here and lets go of it. A row comes into the index with the
-- change and leaves it with its owner's next write, so there are hardly any.
create index concurrently if not exists transactions_changed
    on paypoll.transactions (owner) where superseded_fence = fence;
