-- Every change of state, append-only, and the feed that is read from it.

create table paypoll.transitions (
    id             bigint      generated always as identity primary key,
    transaction_id uuid        not null,                 -- no foreign key: the history outlives a row that its owner deletes
    from_state     text        not null,
    to_state       text        not null,
    provider_state text,                                 -- null: the provider had said no word
    reason         text,                                 -- null: nothing to explain
    source         text        not null check (source in ('poll', 'deadline', 'external', 'operator')),
    evidence       jsonb,                                -- null: no answer stands behind it
    at             timestamptz not null default now() check (isfinite(at))
);

-- No statement asks by what is inside: the planner's samples of it would cost more than all its other columns together.
alter table paypoll.transitions alter column evidence set statistics 0;

create index transitions_transaction on paypoll.transitions (transaction_id);
-- The daemon looks here, several times a second, for verdicts that are not its own.
create index transitions_by_others on paypoll.transitions (id) where source in ('external', 'operator');

create function paypoll.refuse_change() returns trigger language plpgsql as $$
begin
    raise exception 'paypoll.% is append-only', tg_table_name using errcode = 'restrict_violation';
end
$$;
create trigger append_only before update or delete or truncate on paypoll.transitions
    for each statement execute function paypoll.refuse_change();

-- The feed. Ids are given out before their transactions commit, so a reader that only remembers the highest id it saw would skip
-- what commits late. Therefore each writer, before it takes its first id, takes a shared lock whose key is the highest id given
-- out so far: nobody under way can write an id at or below the lowest key that is held.
--
-- The tag 0x7061 ("pa") in the upper 16 bits keeps the keys apart from other advisory locks.

create function paypoll.announce_writer() returns trigger language plpgsql as $$
begin
    if coalesce(current_setting('paypoll.writer', true), '') <> pg_current_xact_id()::text then
        perform pg_advisory_xact_lock_shared((x'7061'::bigint << 48) | (select last_value - case when is_called then 0 else 1 end from paypoll.transitions_id_seq));
        perform set_config('paypoll.writer', pg_current_xact_id()::text, true);
    end if;
    return null;
end
$$;
create trigger announce_writer before insert on paypoll.transitions
    for each statement execute function paypoll.announce_writer();

-- The transitions after `cursor` (an id; 0 for the beginning), at most `max` of them, in the order of their ids. Remember the id of
-- the last one as the next cursor: nothing is ever skipped, however late it commits.
create function paypoll.transitions_since(cursor bigint, max integer default 1000)
returns setof paypoll.transitions language plpgsql volatile as $$
declare
    settled bigint;
begin
    if pg_is_in_recovery() then
        raise exception 'paypoll.transitions_since needs the primary: a standby does not know which writers are under way';
    end if;
    if current_setting('transaction_isolation') <> 'read committed' then
        raise exception 'paypoll.transitions_since needs isolation level read committed: with an older snapshot it could skip transitions';
    end if;
    -- First the locks, then the rows: a writer that commits in between is then seen by its row.
    select min(((classid::bigint & 65535) << 32) | objid::bigint) into settled
      from pg_locks
     where locktype = 'advisory' and objsubid = 1 and classid::bigint >> 16 = x'7061'::bigint
       and database = (select oid from pg_database where datname = current_database());
    return query
        select t.* from paypoll.transitions t
         where t.id > coalesce($1, 0) and (settled is null or t.id <= settled)
         order by t.id limit $2;
end
$$;

create function paypoll.notify_transitions() returns trigger language plpgsql as $$
begin
    -- A listener that sleeps in a transaction lets the queue fill up; a full queue would make every commit fail. The feed has it all.
    if pg_notification_queue_usage() < 0.5 then
        -- Put together by hand, at half the cost: neither a state nor a provider that the tables admit has a character to escape.
        perform pg_notify('paypoll_transitions', format('{"id":%s,"transaction_id":"%s","provider":"%s","from":"%s","to":"%s"}',
                                                        n.id, n.transaction_id, t.provider, n.from_state, n.to_state))
           from new_transitions n join paypoll.transactions t on t.id = n.transaction_id
          order by n.id;
    end if;
    return null;
end
$$;
create trigger notify_transitions after insert on paypoll.transitions referencing new table as new_transitions
    for each statement execute function paypoll.notify_transitions();
