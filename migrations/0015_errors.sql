-- What goes wrong, account by account: the most frequent errors of the last hour. Only polls that met an error come into it.
--
-- On the parent alone, so that no day that is written to is locked. Days that are made later have it from the start; those that are
-- there already get it from `paypoll migrate`, one after the other and without keeping anybody from writing.
create index polls_errors on only paypoll.polls (provider, account, sent_at) where error is not null;
