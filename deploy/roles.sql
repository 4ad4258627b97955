-- Three roles with the least rights that their work needs. Run by the schema's owner (who ran `paypoll migrate`) with the right to
-- create roles, or by a superuser; again after every `paypoll migrate`, and whenever you like:
--   psql "$DATABASE_URL" -v ON_ERROR_STOP=1 -f deploy/roles.sql
-- Then give each program a login of its own:
--   create role shop login password '…' in role paypoll_feeder;
--   create role paypoll login password '…' in role paypoll_daemon;
--   create role grafana login password '…' in role paypoll_reader;
--
--   paypoll_feeder  inserts transactions, corrects them, reports callbacks' outcomes, reads outcomes. Reads no params
--   paypoll_daemon  `paypoll run`, and every other command but `migrate`; pauses and resumes accounts
--   paypoll_reader  `paypoll status`, `show`, `audit`, and queries. Reads no params, changes nothing
--
-- `paypoll migrate` is for the owner alone. paypoll.override_state changes final states: it is for the owner, and for people whom the
-- owner names: grant paypoll_reader to alice; grant execute on function paypoll.override_state(uuid, text, text) to alice;
-- In the same way for those who may pause accounts under their own names: paypoll.pause(text, text, text, timestamptz) and
-- paypoll.resume(text, text).

begin;

do $$
declare
    wanted text;
begin
    foreach wanted in array array['paypoll_feeder', 'paypoll_daemon', 'paypoll_reader'] loop
        if not exists (select from pg_roles where rolname = wanted) then
            execute format('create role %I nologin', wanted);
        end if;
    end loop;
end
$$;

-- From nothing, so that what an earlier version of this file granted does not stay.
revoke all on all tables in schema paypoll from public, paypoll_feeder, paypoll_daemon, paypoll_reader;
revoke all on all sequences in schema paypoll from public, paypoll_feeder, paypoll_daemon, paypoll_reader;
revoke all on all functions in schema paypoll from paypoll_feeder, paypoll_daemon, paypoll_reader;
revoke all on schema paypoll from public, paypoll_feeder, paypoll_daemon, paypoll_reader;

grant usage on schema paypoll to paypoll_feeder, paypoll_daemon, paypoll_reader;

-- The feeder. Neither fence nor owner: with them a state could be changed past the history. No delete.
grant insert (id, provider, account, reference, params, amount, currency, initiated_at),
      update (account, reference, params, amount, currency, initiated_at, state, provider_state, reason),
      select (id, provider, account, reference, amount, currency, initiated_at, state, provider_state, reason, action, details, attempts,
              failures, last_polled_at, next_poll_at, finalized_at, created_at, updated_at)
   on paypoll.transactions to paypoll_feeder;
grant select on paypoll.transitions, paypoll.providers to paypoll_feeder;
grant execute on function paypoll.settle(text, text, text, text, text, text, jsonb) to paypoll_feeder;

-- The daemon. It neither inserts nor deletes transactions, changes nothing that the feeder said, and rewrites no history.
grant select,
      update (state, provider_state, reason, action, details, attempts, failures, last_polled_at, next_poll_at, updated_at,
              fence, owner, not_found, reopened_at, action_at, not_before, opened_at, phase, phase_since, gaps,
              answered)
   on paypoll.transactions to paypoll_daemon;
grant select, insert on paypoll.transitions, paypoll.polls to paypoll_daemon;
grant select on sequence paypoll.transitions_id_seq to paypoll_daemon;
grant select, insert, update, delete on paypoll.replicas to paypoll_daemon;
grant select, insert, update on paypoll.accounts to paypoll_daemon;
grant select, insert, update, delete on paypoll.commits, paypoll.exclusive_keys to paypoll_daemon;
grant select, update on paypoll.server to paypoll_daemon;
grant select on paypoll.providers, paypoll.declarations to paypoll_daemon;
grant execute on function paypoll.make_journal(date, date), paypoll.prune_journal(date), paypoll.shown_params(uuid),
                          paypoll.register_provider(text, text[], text, integer),
                          paypoll.register_declaration(text, text[], text, integer, jsonb),
                          paypoll.hold_declaration(uuid, text, text, interval), paypoll.release_declarations(uuid),
                          paypoll.pause(text, text, text, timestamptz), paypoll.resume(text, text) to paypoll_daemon;

-- The reader.
grant select (id, provider, account, reference, amount, currency, initiated_at, state, provider_state, reason, action, details, attempts,
              failures, last_polled_at, next_poll_at, finalized_at, created_at, updated_at, owner, reopened_at, action_at, opened_at,
              phase, phase_since, gaps, answered)
   on paypoll.transactions to paypoll_reader;
grant select on paypoll.server, paypoll.transitions, paypoll.polls, paypoll.replicas, paypoll.accounts, paypoll.providers, paypoll.declarations
   to paypoll_reader;
grant execute on function paypoll.shown_params(uuid) to paypoll_reader;

-- Which version of the schema it is: `paypoll run`, `status` and the others look first. Absent where the schema was not made by `migrate`.
do $$
begin
    if to_regclass('paypoll.migrations') is not null then
        grant select on paypoll.migrations to paypoll_daemon, paypoll_reader;
    end if;
end
$$;

commit;
