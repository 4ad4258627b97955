-- Providers that are declared in a file: under which file a poll was sent, what each file forbade, and who serves under which.

-- The hash of the file under which the poll was sent. Its name alone would say what a file means today, not what it meant then.
alter table paypoll.polls add column declaration bytea;  -- null: the provider is compiled in, or the poll is from before 0.2
comment on column paypoll.polls.declaration is
    'SHA-256 of the provider''s declaration under which the poll was sent; null for a compiled provider, and in rows from before 0.2.';

-- Every file that ever was served, with its floors: a file that became stricter does not make old polls guilty.
create table paypoll.declarations (
    provider      text        not null,
    sha256        text        not null check (sha256 ~ '^[0-9a-f]{64}$'),
    floors        jsonb       not null,
    registered_at timestamptz not null default now(),
    primary key (provider, sha256)
);
comment on table paypoll.declarations is 'The files that declare or declared a provider, with what their documentation forbids: by them old polls are judged.';
comment on column paypoll.declarations.provider is 'The provider''s name, as in paypoll.providers.';
comment on column paypoll.declarations.sha256 is 'SHA-256 of the file, in hex.';
comment on column paypoll.declarations.floors is 'What the file forbids: {"first_ms", "every_ms", "window_ms", "rate"}; what is absent is not forbidden.';
comment on column paypoll.declarations.registered_at is 'When a daemon first served under the file.';

-- Two replicas that read different files would call one answer by two names. Whoever comes later waits until nobody serves under the other
-- file any more: a lease of its own for each replica and provider, renewed while it lives.
create table paypoll.declaration_leases (
    holder   uuid        not null,
    provider text        not null,
    sha256   text        not null,
    until    timestamptz not null,
    primary key (provider, holder)
);
comment on table paypoll.declaration_leases is 'Which replica serves a declared provider under which file: all living ones under the same.';
comment on column paypoll.declaration_leases.holder is 'The replica''s own number, made anew at every start.';
comment on column paypoll.declaration_leases.provider is 'The provider''s name.';
comment on column paypoll.declaration_leases.sha256 is 'SHA-256 of the file, in hex.';
comment on column paypoll.declaration_leases.until is 'When the lease ends, unless it is renewed.';

create function paypoll.register_declaration(name text, secret_params text[], sha256 text, format integer, floors jsonb) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform paypoll.register_provider($1, $2, $3, $4);
    insert into paypoll.declarations (provider, sha256, floors) values ($1, $3, $5) on conflict do nothing;
end
$$;
comment on function paypoll.register_declaration(text, text[], text, integer, jsonb) is
    'Registers a declared provider with what its file forbids. What was registered for a hash once stays: the same file forbids the same.';

-- Null: it is held, for so long. Else the hash of the other file under which a living replica serves.
create function paypoll.hold_declaration(holder uuid, provider text, sha256 text, lease interval) returns text
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    other text;
begin
    -- One at a time, or two that come at once would not see each other.
    perform pg_advisory_xact_lock(hashtext('paypoll.declaration.' || $2));
    delete from paypoll.declaration_leases l where l.provider = $2 and l.until < clock_timestamp();
    select l.sha256 into other from paypoll.declaration_leases l where l.provider = $2 and l.sha256 <> $3 and l.holder <> $1 limit 1;
    if found then
        delete from paypoll.declaration_leases l where l.provider = $2 and l.holder = $1;
        return other;
    end if;
    insert into paypoll.declaration_leases as l (holder, provider, sha256, until) values ($1, $2, $3, clock_timestamp() + $4)
        on conflict on constraint declaration_leases_pkey do update set sha256 = excluded.sha256, until = excluded.until;
    return null;
end
$$;
comment on function paypoll.hold_declaration(uuid, text, text, interval) is
    'Holds a declared provider under a file for so long. Null when it is held; else the hash under which another living replica serves.';

create function paypoll.release_declarations(holder uuid) returns void
language sql security definer set search_path = pg_catalog, pg_temp as $$
    delete from paypoll.declaration_leases l where l.holder = $1
$$;
comment on function paypoll.release_declarations(uuid) is 'Gives back what a replica holds: it stops.';

revoke execute on function
    paypoll.register_declaration(text, text[], text, integer, jsonb),
    paypoll.hold_declaration(uuid, text, text, interval),
    paypoll.release_declarations(uuid)
from public;
