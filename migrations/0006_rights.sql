-- Least rights. A role that may change a state may not for that be able to write the history, and one that keeps the journal may not
-- for that own it. So these functions act with the rights of the schema's owner; whom they serve is said by deploy/roles.sql.
--
-- Everything they name stands in the schema paypoll by its full name, and nothing else is looked up but PostgreSQL's own.
-- A later `create or replace` of one of them has to say all of this again.

alter function paypoll.guard_state() security definer set search_path = pg_catalog, pg_temp;
alter function paypoll.settle(text, text, text, text, text, text, jsonb) security definer set search_path = pg_catalog, pg_temp;
alter function paypoll.override_state(uuid, text, text) security definer set search_path = pg_catalog, pg_temp;
alter function paypoll.make_journal(date, date) security definer set search_path = pg_catalog, pg_temp;
alter function paypoll.prune_journal(date) security definer set search_path = pg_catalog, pg_temp set lock_timeout = '100ms';

-- The params of a transaction as people may see them, for roles that may not read the column: `paypoll show`. The same keys under
-- every provider; what is no object is malformed and might hold anything.
create function paypoll.shown_params(id uuid) returns jsonb language sql stable security definer set search_path = pg_catalog, pg_temp as $$
    select case jsonb_typeof(t.params)
           when 'object' then (select coalesce(jsonb_object_agg(p.key, case when p.key in ('session', 'accessToken', 'userSecret')
                                                                            then '"[redacted]"'::jsonb else p.value end), '{}')
                                 from jsonb_each(t.params) p)
           when 'null' then t.params
           else '"[redacted]"'::jsonb end
      from paypoll.transactions t where t.id = $1
$$;

-- The trigger's function too: whoever may execute it could hang it onto a table of his own and have it write history.
revoke execute on function
    paypoll.guard_state(),
    paypoll.settle(text, text, text, text, text, text, jsonb),
    paypoll.override_state(uuid, text, text),
    paypoll.make_journal(date, date),
    paypoll.prune_journal(date),
    paypoll.shown_params(uuid)
from public;
