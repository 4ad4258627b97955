-- Whose functions run. A login that may create a function or an operator in a schema of its own could have paypoll's functions call it,
-- by putting that schema first into its search_path: an own `+ (bigint, integer)` set fences to the end of their range, an own now() a
-- first poll to the year 9990. So every function says itself where it looks; those that came with this version already do.

do $$
declare
    function regprocedure;
begin
    for function in
        select p.oid::regprocedure from pg_proc p
         where p.pronamespace = 'paypoll'::regnamespace
           and not exists (select from unnest(p.proconfig) c (setting) where c.setting like 'search\_path=%')
    loop
        execute format('alter function %s set search_path = pg_catalog, pg_temp', function);
    end loop;
end
$$;

-- From 0002. A transaction that has notified somebody cannot be prepared for a two-phase commit: `set local paypoll.notify = off` keeps
-- the bell from ringing; the feed has the transition all the same.
create or replace function paypoll.notify_transitions() returns trigger language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    -- A listener that sleeps in a transaction lets the queue fill up; a full queue would make every commit fail. The feed has it all.
    if coalesce(current_setting('paypoll.notify', true), '') <> 'off' and pg_notification_queue_usage() < 0.5 then
        -- Put together by hand, at half the cost: neither a state nor a provider that the tables admit has a character to escape.
        perform pg_notify('paypoll_transitions', format('{"id":%s,"transaction_id":"%s","provider":"%s","from":"%s","to":"%s"}',
                                                        n.id, n.transaction_id, t.provider, n.from_state, n.to_state))
           from new_transitions n join paypoll.transactions t on t.id = n.transaction_id
          order by n.id;
    end if;
    return null;
end
$$;
