-- Whether a window had any usable answer: one that had none is parked with a reason of its own, because retrying it as it is will fail in
-- the same way.
alter table paypoll.transactions add column answered boolean not null default false;
comment on column paypoll.transactions.answered is 'A poll of the current window got a usable answer. Written by the daemon; false again when the transaction is reopened.';

-- It is the daemon's, as fence and owner are: whoever inserts a row says nothing of it, and whoever changes one does not either.
create function paypoll.guard_answered() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    if tg_op = 'INSERT' then
        new.answered := false;
    else
        raise exception 'transaction %: answered is for the daemon to write', old.id using errcode = 'restrict_violation', column = 'answered';
    end if;
    return new;
end
$$;
comment on function paypoll.guard_answered() is 'Trigger: answered is the daemon''s column.';
create trigger guard_answered_insert before insert on paypoll.transactions for each row
    when (new.answered) execute function paypoll.guard_answered();
create trigger guard_answered before update of answered on paypoll.transactions for each row
    when (new.answered is distinct from old.answered and new.fence is distinct from old.fence + 1)
    execute function paypoll.guard_answered();
