-- The feed, without its gap.
--
-- What was wrong: the feed took the writers' locks in one statement and the rows in a later one. A writer that took its lock and its
-- id in between was in neither, while another one that committed in between was read: the cursor went past the first for ever.
--
-- What holds now. Let `highest` be the highest id that was given out when a look began. Whoever writes an id up to it had taken that id
-- before, and its lock before that. The locks are read afterwards: so either that writer still holds its lock, and nothing above its
-- key is read; or it has ended, and its rows are visible to the statement that reads them, which begins later still. Every step of
-- that is an order of events and none a matter of speed.
--
-- Sequence and locks are read as they stand, whatever the snapshot (and the sequence behind its own lock: see last_id); a lock is let go of only after what it stands for is visible; and
-- PostgreSQL reads all advisory locks at one moment. So it does not matter either how long anybody stands still between two steps.
--
-- While this is applied. A transaction that announced itself under the function before this one goes on as it is: its lock has the
-- old form, under which it is looked for here too, and the setting that says so is the same, so that it announces itself once. Whoever
-- begins to write later does it in the new form, without a moment in which neither holds: a statement takes up the new function as
-- soon as it has locked the table, and until then the old one does the same work under the old key. A look that has begun under the
-- function before this one ends under it; from the next one on nothing is passed by.

-- The highest id given out so far. A sequence is a table too, but one that is changed in place: while it writes ahead to the log, every
-- 32 ids, it holds a number that is 32 too high, and a select sees that. This function of PostgreSQL's own (it is what the view
-- pg_sequences shows) waits until the sequence is itself again; null: no id was given out since it was made or set.
create function paypoll.last_id() returns bigint language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp as $$
declare
    last bigint := pg_sequence_last_value('paypoll.transitions_id_seq');
begin
    if last is null then
        select s.last_value - 1 into last from paypoll.transitions_id_seq s;
        -- Unless the first one is given out just now, there is nothing to see that is too high.
        last := coalesce(pg_sequence_last_value('paypoll.transitions_id_seq'), last);
    end if;
    return last;
end
$$;
comment on function paypoll.last_id() is 'The highest id of a transition given out so far, whether it is committed, under way or given up.';

-- The key of a writer's lock. Its first half is the sequence's oid (24 bits) and 8 bits of the highest id given out so far, its second
-- half the 32 bits below. So it belongs to this schema of this database alone, and a copy of it beside this one, under whatever name,
-- holds up nobody here. Should a foreign lock have the same bits all the same, the feed waits for it; it loses nothing.
--
-- 40 bits of an id name it among its 2^40 neighbours: a key is wrong only when 5 * 10^11 transitions were written since its
-- transaction began, half a year at 30,000 a second. How large the ids are does not matter.
create or replace function paypoll.announce_writer() returns trigger language plpgsql
set search_path = pg_catalog, pg_temp as $$
declare
    sequence constant bigint := 'paypoll.transitions_id_seq'::regclass::oid::bigint & 16777215;
    last bigint;
begin
    -- One lock for each transaction: one for each statement would fill the server's table of locks. Whoever rolls back to a savepoint
    -- before it loses lock and setting together.
    if coalesce(current_setting('paypoll.writer', true), '') <> pg_current_xact_id()::text then
        last := paypoll.last_id();
        perform pg_advisory_xact_lock_shared((sequence << 8 | (last >> 32 & 255))::bit(32)::integer, last::bit(32)::integer);
        perform set_config('paypoll.writer', pg_current_xact_id()::text, true);
    end if;
    return null;
end
$$;
comment on function paypoll.announce_writer() is
    'Trigger: before its first id a writer takes a lock whose key is the highest id given out so far.';

create function paypoll.safe_id() returns bigint language plpgsql volatile
set search_path = pg_catalog, pg_temp as $$
declare
    sequence constant bigint := 'paypoll.transitions_id_seq'::regclass::oid::bigint & 16777215;
    highest bigint;
    behind bigint;                                       -- null: nobody is writing
begin
    if pg_is_in_recovery() then
        raise exception 'paypoll.safe_id needs the primary: a standby does not know which writers are under way'
              using errcode = 'read_only_sql_transaction';
    end if;
    -- The order of these two is what the feed rests on.
    highest := paypoll.last_id();
    -- By how much the lowest key is below; a key above is a writer's that came since, and concerns only ids above too.
    select min(case l.objsubid
               when 2 then (((l.classid::bigint & 255) << 32 | l.objid::bigint) - highest + (1::bigint << 39) & (1::bigint << 40) - 1)
                           - (1::bigint << 39)
               -- The form before this one: 48 bits of the id below the tag 0x7061. It was selected, so it may have been up to 33 too high.
               else ((l.classid::bigint & 65535) << 32 | l.objid::bigint) - 33 - highest end) into behind
      from pg_locks l
     where l.locktype = 'advisory'
       and l.database = (select d.oid from pg_database d where d.datname = current_database())
       and (l.objsubid = 2 and l.classid::bigint >> 8 = sequence or l.objsubid = 1 and l.classid::bigint >> 16 = x'7061'::bigint);
    return highest + least(behind, 0);
end
$$;
comment on function paypoll.safe_id() is
    'Up to this id every transition is visible to the statements that begin from now on: no writer is under way that could add one.';

create or replace function paypoll.transitions_since(cursor bigint, max integer default 1000)
returns setof paypoll.transitions language plpgsql volatile
set search_path = pg_catalog, pg_temp as $$
declare
    safe bigint;
begin
    if pg_is_in_recovery() then
        raise exception 'paypoll.transitions_since needs the primary: a standby does not know which writers are under way';
    end if;
    if current_setting('transaction_isolation') <> 'read committed' then
        raise exception 'paypoll.transitions_since needs isolation level read committed: with an older snapshot it could skip transitions';
    end if;
    -- First how far it is safe, then the rows.
    safe := paypoll.safe_id();
    return query
        select t.* from paypoll.transitions t
         where t.id > coalesce($1, 0) and t.id <= safe
         order by t.id limit $2;
end
$$;
comment on function paypoll.transitions_since(bigint, integer) is
    'The feed: transitions after the cursor (an id; 0 for the beginning) in the order of their ids. Remember the last one''s id as the next cursor.';
