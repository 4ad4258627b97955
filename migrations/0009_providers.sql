-- Which providers there are, who changed a transaction, and accounts that an operator has paused.

-- Until now the names stood inside admit(): a provider that is described in a file can only be known by the database if they stand
-- in a table.
create table paypoll.providers (
    name          text        not null primary key,
    secret_params text[]      not null default '{}',     -- keys of params whose values are secrets
    sha256        text        check (sha256 ~ '^[0-9a-f]{64}$'), -- null: compiled into paypoll
    format        integer,                               -- null: compiled into paypoll
    registered_at timestamptz not null default now(),
    constraint providers_name_in_range check (length(name) between 1 and 64),
    constraint providers_declared_in_full check ((sha256 is null) = (format is null))
);
comment on table paypoll.providers is 'The providers that transactions may name: those compiled into paypoll, and those declared in a file.';
comment on column paypoll.providers.name is 'As in transactions.provider and in the configuration.';
comment on column paypoll.providers.secret_params is 'Keys of transactions.params whose values are secrets: never shown, and erased once a transaction is final.';
comment on column paypoll.providers.sha256 is 'SHA-256 of the declaration, in hex, as it was last registered; null for a compiled provider.';
comment on column paypoll.providers.format is 'Version of the declaration''s language; null for a compiled provider.';
comment on column paypoll.providers.registered_at is 'When the name was registered, or last registered anew.';

insert into paypoll.providers (name, secret_params) values
    ('dropayment', array['session']),
    ('dusupay', '{}'),
    ('ayoconnect', '{}'),
    ('khalti', '{}'),
    ('dapi', array['accessToken', 'userSecret']);

-- Registers a declared provider, or what has changed in its declaration. What was secret once stays secret: transactions that were
-- inserted under an older declaration are still there. A compiled provider cannot be declared: with its name its secrets would go.
create function paypoll.register_provider(name text, secret_params text[], sha256 text, format integer) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    if $3 is null or $4 is null then
        raise exception 'provider % needs the hash and the format of its declaration', quote_literal($1) using errcode = 'check_violation';
    end if;
    insert into paypoll.providers as p (name, secret_params, sha256, format) values ($1, coalesce($2, '{}'), $3, $4)
        on conflict on constraint providers_pkey do update
       set secret_params = array(select distinct key from unnest(p.secret_params || excluded.secret_params) key order by key),
           sha256 = excluded.sha256, format = excluded.format, registered_at = now()
     where p.sha256 is not null;
    if not found then
        raise exception 'provider % is compiled into paypoll: a declaration needs a name of its own', quote_literal($1)
              using errcode = 'unique_violation';
    end if;
end
$$;
comment on function paypoll.register_provider(text, text[], text, integer) is
    'Registers a declared provider under the hash of its declaration. Keys that were secret under an earlier one stay secret.';

-- From 0003, which had the names inside. It acts with the owner's rights now, because whoever inserts need not be able to read the
-- table; and with a fixed search_path, because it read its operators from wherever the caller looked first.
create or replace function paypoll.admit() returns trigger language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    if not exists (select from paypoll.providers p where p.name = new.provider) then
        raise exception 'provider % is not known to paypoll: it is one of %', quote_literal(new.provider),
                        (select string_agg(p.name, ', ' order by p.registered_at, p.ctid) from paypoll.providers p)
              using errcode = 'check_violation', column = 'provider';
    end if;
    if length(new.reference) not between 1 and 512 then
        raise exception 'reference has % characters: it must have 1 to 512', length(new.reference)
              using errcode = 'check_violation', column = 'reference';
    end if;
    if length(new.account) not between 1 and 128 then
        raise exception 'account has % characters: it must have 1 to 128', length(new.account)
              using errcode = 'check_violation', column = 'account';
    end if;
    if new.state <> 'pending' then
        raise exception 'a transaction begins as pending, not as %', quote_literal(new.state)
              using errcode = 'check_violation', column = 'state';
    end if;
    if pg_column_size(new.params) > 65536 then
        raise exception 'params has % bytes: at most 65536 are allowed', pg_column_size(new.params)
              using errcode = 'check_violation', column = 'params';
    end if;
    -- Only the daemon says more than this.
    new.provider_state := null; new.reason := null; new.action := null; new.details := null;
    new.attempts := 0; new.failures := 0; new.not_found := 0; new.fence := 0; new.phase := 0; new.gaps := 0;
    new.last_polled_at := null; new.finalized_at := null; new.owner := null; new.reopened_at := null;
    new.action_at := null; new.opened_at := null; new.phase_since := null; new.not_before := null;
    new.created_at := now(); new.updated_at := now();
    -- The daemon looks at it at once and then knows when its plan wants the first poll.
    new.next_poll_at := clock_timestamp();
    if new.initiated_at > now() + interval '5 minutes' then
        new.state := 'invalid';
        new.reason := format('initiated_at lies in the future (%s): correct it, then retry', new.initiated_at);
        new.next_poll_at := null;
        -- No calendar in use goes further; the reason keeps what was said.
        new.initiated_at := least(new.initiated_at, timestamptz '9999-01-01');
    elsif new.initiated_at < timestamptz '2000-01-01' then
        new.state := 'invalid';
        new.reason := format('initiated_at lies before the year 2000 (%s): correct it, then retry', new.initiated_at);
        new.next_poll_at := null;
        new.initiated_at := greatest(new.initiated_at, timestamptz '1970-01-01');
    end if;
    return new;
end
$$;

-- From 0003, which knew two providers by name. What belongs to a provider that nobody knows any more may all be secret.
create or replace function paypoll.without_secrets(provider text, params jsonb) returns jsonb
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
    select case when jsonb_typeof(params) <> 'object' then params
                else coalesce((select params - p.secret_params from paypoll.providers p where p.name = provider), '{}') end
$$;

-- From 0006, which knew the keys by name, and showed params of any length. Now those of all providers, whatever the row's own: a feeder
-- may have mistaken one for another.
create or replace function paypoll.shown_params(id uuid) returns jsonb
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
    select case case when pg_column_size(t.params) <= 65536 and octet_length(t.params::text) <= 65536 then jsonb_typeof(t.params) end
           when 'object' then (
                select coalesce(jsonb_object_agg(p.key, case when s.is_known and p.key <> all (s.keys) then p.value
                                                             else '"[redacted]"'::jsonb end), '{}')
                  from jsonb_each(t.params) p,
                       (select array(select unnest(k.secret_params) from paypoll.providers k) as keys,
                               exists (select from paypoll.providers k where k.name = t.provider) as is_known) s)
           when 'null' then t.params
           else '"[redacted]"'::jsonb end
      from paypoll.transactions t where t.id = $1
$$;

-- Who writes: the login, which nobody can forge, and the name in its setting paypoll.actor, which is the writer's own word.
create function paypoll.actor() returns text language sql stable set search_path = pg_catalog, pg_temp as $$
    select session_user::text
           || coalesce(' (as ' || nullif(left(current_setting('paypoll.actor', true), 200), '') || ')', '')
$$;
comment on function paypoll.actor() is
    'Who writes: the session''s login, followed by the name in its setting paypoll.actor where it is set, as in: shop (as alice@desk).';

alter table paypoll.transitions add column actor text;   -- null: written before paypoll kept it
comment on column paypoll.transitions.actor is
    'Who changed the state: the login, followed by the name in its setting paypoll.actor where it was set; null in rows from before 0.2.';

-- Whatever the insert says: no writer names himself. The default and the condition say what paypoll.actor() says: written out they
-- cost a microsecond, and so the trigger's function runs only where somebody tries.
alter table paypoll.transitions alter column actor set default session_user::text
    || coalesce(' (as ' || nullif(left(current_setting('paypoll.actor', true), 200), '') || ')', '');
create function paypoll.sign_transition() returns trigger language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    new.actor := paypoll.actor();
    return new;
end
$$;
comment on function paypoll.sign_transition() is 'Trigger: nobody but the database says who wrote a transition.';
create trigger sign_transition before insert on paypoll.transitions for each row
    when (new.actor is distinct from session_user::text
        || coalesce(' (as ' || nullif(left(current_setting('paypoll.actor', true), 200), '') || ')', ''))
    execute function paypoll.sign_transition();

-- A pause that an operator wants, not the provider: held_until is that one's.
alter table paypoll.accounts
    add column paused_at      timestamptz,               -- null: not paused by an operator
    add column paused_until   timestamptz,               -- null: until somebody resumes it
    add column paused_because text,                      -- null: not paused
    add column paused_by      text,                      -- null: not paused
    add constraint accounts_pause_in_range check (
        least(paused_at, paused_until) >= timestamptz '1970-01-01 00:00Z'
        and greatest(paused_at, paused_until) < timestamptz '10000-01-01 00:00Z'),
    add constraint accounts_paused_in_full check (
        (paused_at is null) = (paused_because is null) and (paused_at is null) = (paused_by is null)
        and (paused_at is not null or paused_until is null));
comment on column paypoll.accounts.paused_at is 'Since when an operator keeps the account from being asked; null: nobody does.';
comment on column paypoll.accounts.paused_until is 'When that pause ends by itself; null: not before somebody resumes the account.';
comment on column paypoll.accounts.paused_because is 'Why the operator paused it.';
comment on column paypoll.accounts.paused_by is 'Who paused it, as in transitions.actor.';

create function paypoll.pause(provider text, account text, because text, until timestamptz default null) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    if not exists (select from paypoll.providers p where p.name = $1) then
        raise exception 'provider % is not known to paypoll: it is one of %', coalesce(quote_literal($1), 'null'),
                        (select string_agg(p.name, ', ' order by p.registered_at, p.ctid) from paypoll.providers p)
              using errcode = 'check_violation';
    end if;
    if coalesce(length($2), 0) not between 1 and 128 then
        raise exception 'account has % characters: it must have 1 to 128', coalesce(length($2), 0) using errcode = 'check_violation';
    end if;
    if coalesce(trim($3), '') = '' then
        raise exception 'a pause needs a reason' using errcode = 'check_violation';
    end if;
    if length($3) > 2000 then
        raise exception 'the reason has % characters: at most 2000 are allowed', length($3) using errcode = 'check_violation';
    end if;
    if $4 <= clock_timestamp() or $4 >= timestamptz '9999-01-01' then
        raise exception 'a pause cannot last until %: give a time to come, or none for a pause until it is resumed', $4
              using errcode = 'check_violation';
    end if;
    insert into paypoll.accounts as a (provider, account, paused_at, paused_until, paused_because, paused_by)
    values ($1, $2, clock_timestamp(), $4, $3, paypoll.actor())
        on conflict on constraint accounts_pkey do update
       set paused_at = excluded.paused_at, paused_until = excluded.paused_until,
           paused_because = excluded.paused_because, paused_by = excluded.paused_by;
end
$$;
comment on function paypoll.pause(text, text, text, timestamptz) is
    'Pauses an account: no replica asks the provider anything about it before that time, or before paypoll.resume(provider, account).';

create function paypoll.resume(provider text, account text) returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    if not exists (select from paypoll.providers p where p.name = $1) then
        raise exception 'provider % is not known to paypoll: it is one of %', coalesce(quote_literal($1), 'null'),
                        (select string_agg(p.name, ', ' order by p.registered_at, p.ctid) from paypoll.providers p)
              using errcode = 'check_violation';
    end if;
    update paypoll.accounts a
       set paused_at = null, paused_until = null, paused_because = null, paused_by = null
     where a.provider = $1 and a.account = $2 and a.paused_at is not null;
    return found;
end
$$;
comment on function paypoll.resume(text, text) is 'Ends a pause. False when the account was not paused.';

-- Functions that act with the owner's rights are for whom deploy/roles.sql names, trigger functions for triggers alone. `create or
-- replace` has kept what 0006 revoked from shown_params.
revoke execute on function
    paypoll.register_provider(text, text[], text, integer),
    paypoll.admit(),
    paypoll.without_secrets(text, jsonb),
    paypoll.shown_params(uuid),
    paypoll.sign_transition(),
    paypoll.pause(text, text, text, timestamptz),
    paypoll.resume(text, text)
from public;
